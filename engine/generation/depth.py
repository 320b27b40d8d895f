"""How a completion's tokens are computed, by the setting `depth`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..exits.controller import Exits
from ..model.decoder import Check
from ..wire.config import DEPTHS, CompletionParams
from ..wire.errors import BadRequest
from .decoding_cache import DecodingCache
from .draft import DraftRecord, PromptLookup
from .fast import FastSteps
from .skipping import SkippingSteps
from .speculation import Decoding, SpeculativeSteps
from .steps import PlainSteps, Steps


def steps_of(
    params: CompletionParams,
    prompt: DecodingCache,
    check: Check,
    *,
    lookup: Callable[[], PromptLookup],
    record: DraftRecord,
    fast: Exits | Callable[[int], bytes] | None,
    skips: bytes | None,
    num_forced: int,
    end_ids: Collection[int],
    token_bytes: Sequence[bytes],
) -> Steps:
    """Return the decode steps after a prompt, whose logits are there and nothing generated yet.

    Args:
        params: its `depth` decides; its stop strings and `max_tokens` bound what is drafted.
        prompt: the prompt's rows.
        check: called between layers.
        lookup: makes what finds drafts in texts.
        record: what the model's drafts have been worth.
        fast: what "fast" saves by: the model's exits, or what is skipped by a token's number, as
            for `SkippingSteps`; None: nothing, and it is as "exact".
        skips: sub-layers that a draft may leave out; None: there is no such set.
        num_forced: bytes that are bound to be written first.
        end_ids: tokens that end a completion.
        token_bytes: bytes of each token.

    Raises:
        BadRequest: there is no such depth, or the model has fewer layers.
    """
    depth, num_layers = params.depth, prompt.decoder.config.num_layers
    if depth == "full":
        return PlainSteps(prompt, num_layers, check)
    if depth in DEPTHS:
        stops = [string.encode("utf-8", "replace") for string in params.stop if string]

        def is_last(token_id: int) -> bool:
            return token_id in end_ids or any(stop in token_bytes[token_id] for stop in stops)

        found = lookup() if "lookup" in record.sources else None
        decoding = Decoding(prompt, check, found, record, is_last, params.max_tokens)
        if depth != "fast" or fast is None:
            return SpeculativeSteps(decoding, skips)
        if not isinstance(fast, Exits):
            return SkippingSteps(decoding, fast)
        return FastSteps(decoding, exits=fast, num_forced=num_forced, token_bytes=token_bytes)
    if not depth.isdecimal() or not 0 < int(depth[:9]) <= num_layers:
        known = ", ".join(DEPTHS)
        raise BadRequest(f"depth {depth:.20}: must be {known} or a number from 1 to {num_layers}")
    return PlainSteps(prompt, int(depth), check)
