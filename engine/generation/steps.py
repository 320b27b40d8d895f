"""Decode steps: how a completion's tokens are computed, by the setting `depth`, and their loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from torch import Tensor

from ..exits.controller import Exits
from ..model.decoder import Check
from ..model.heads import Summary
from ..wire.config import DEPTHS, CompletionParams
from ..wire.errors import BadRequest, ContextTooLong
from .decoding_cache import DecodingCache
from .draft import DraftRecord, PromptLookup
from .fast import FastSteps
from .skipping import SkippingSteps
from .speculation import Decoding, SpeculativeSteps
from .writing import After, Generated, Writing


class Step(Protocol):
    """Computes generated tokens, one after the other; how many rows at a time is its own affair."""

    def __call__(self, token_id: int) -> Tensor | None:
        """Take one more token.

        Returns:
            The (vocab_size,) float32 logits after it; None to give the completion up.

        Raises:
            ContextTooLong: the cache is full.
        """
        ...


class Steps(Step, Protocol):
    """The decode steps of one completion."""

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token, on average, those of useless drafts included."""
        ...

    @property
    def layers(self) -> range | None:
        """Layers that every row goes through; None: that differs."""
        ...

    def pause(self) -> None:
        """Leave rows of taken tokens only, and whole, for others to go on behind them."""
        ...

    def take(self, token_id: int) -> None:
        """Take note of a token whose row others have computed."""
        ...

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that a call returned last."""
        ...

    def end(self) -> None:
        """Leave rows of taken tokens only; to be called once, whatever else was raised."""


class PlainSteps:
    """A row for each token by itself, through all layers or the first ones.

    Attributes:
        layers: those.
    """

    def __init__(self, prompt: DecodingCache, num_layers: int, check: Check) -> None:
        """Take nothing yet; see `steps_of`."""
        self._prompt, self._check = prompt, check
        self.layers = range(num_layers)
        self._is_whole = num_layers == prompt.decoder.config.num_layers
        self._summary: Summary | None = None

    def __call__(self, token_id: int) -> Tensor:
        """Compute one more token, as `Step` says."""
        if self._is_whole:
            ((logits, self._summary),) = self._prompt.decode_several([token_id], self._check).read()
            return logits
        return self._prompt.decode(token_id, self._check, self.layers)

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that were returned last."""
        return self._summary

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token."""
        return float(len(self.layers))

    def pause(self) -> None:
        """Leave rows as they are: all are taken."""

    def take(self, token_id: int) -> None:
        """Do nothing with what others have computed."""

    def end(self) -> None:
        """Drop rows that lack layers."""
        if not self._is_whole:
            self._prompt.drop_generated()


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


def _unknown() -> None:
    """Know nothing."""


def generate(
    writing: Writing, step: Step, summary: Callable[[], Summary | None] = _unknown
) -> Generated:
    """Decode to the end, one token after the other; for `summary` see `stepped`."""
    at = advance(writing, None)
    while not isinstance(at, Generated):
        at = advance(writing, stepped(step, at, summary))
    return at


def stepped(
    step: Step, token_id: int, summary: Callable[[], Summary | None] = _unknown
) -> After | ContextTooLong | None:
    """Take one more token; return what `advance` takes.

    Args:
        step: computes its row.
        token_id: the token.
        summary: returns what is known already of the logits that `step` returned last.
    """
    try:
        logits = step(token_id)
    except ContextTooLong as error:
        return error
    return None if logits is None else After(logits, summary())


def advance(writing: Writing, after: After | ContextTooLong | None) -> int | Generated:
    """Go on with what a token's row gave, or begin; return the next token, or the whole."""
    try:
        if isinstance(after, ContextTooLong):
            return writing.throw(after)
        return writing.send(after)
    except StopIteration as done:
        return done.value
