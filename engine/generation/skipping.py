"""Drafts verified by some of the sub-layers: which, is decided by the position alone.

SkipDecode (arXiv 2307.02628, section 3) runs the first layers, which warm up, and the last ones,
fewer of them from token to token: a row lacks no layer that a later one goes through, so nothing is
ever made up, and rows of several sequences at one position go through the same layers. A set of
sub-layers that are left out everywhere is the schedule that does not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ..model.decoder import Check
from ..model.kv_cache import KVCache, Slots
from .decoding_cache import DecodingCache
from .draft import PromptLookup
from .speculation import DraftRecord, SpeculativeSteps

_WHOLE = SKIP_ATTENTION | SKIP_MLP


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the rows of a completion are not put through: ever more.

    Attributes:
        steps: from which number of a token on, and what it is then, as for `Rows`; ascending, the
            first from 0 on, and each with all that the one before it has.
    """

    steps: tuple[tuple[int, bytes], ...]

    def __call__(self, number: int) -> bytes:
        """Return what is skipped for a token of a completion."""
        return next(skipped for start, skipped in reversed(self.steps) if start <= number)


def skip_decode(num_layers: int, *, warm_up: int, least: int, over: int) -> Schedule:
    """Return SkipDecode's schedule: behind the layers that warm up equally many more for a token.

    Args:
        num_layers: of the model: so many run for the first token.
        warm_up: the first layers, which run for every token.
        least: layers in the end, those that warm up among them.
        over: tokens until then.
    """
    steps: dict[bytes, int] = {}
    for number in range(over + 1):
        num_skipped = (num_layers - least) * number // over
        runs = bytes(num_layers - warm_up - num_skipped)
        steps.setdefault(bytes(warm_up) + bytes([_WHOLE]) * num_skipped + runs, number)
    return Schedule(tuple((number, skipped) for skipped, number in steps.items()))


def exit_depths(num_layers: int, depths: Mapping[int, int]) -> Schedule:
    """Return a schedule that leaves out the last layers.

    Args:
        num_layers: of the model.
        depths: from which number of a token on, to how many layers run; 0 is there.
    """
    steps = sorted(depths.items())
    whole = bytes([_WHOLE])
    return Schedule(tuple((at, bytes(depth) + whole * (num_layers - depth)) for at, depth in steps))


class SkippingSteps(SpeculativeSteps):
    """Decode steps over drafts, through fewer sub-layers.

    Keys and values that a row has no state for are made of the state that passes by; the row is
    stale from then on, for healing to make it exact.
    """

    def __init__(
        self,
        prompt: DecodingCache,
        check: Check,
        lookup: PromptLookup | None,
        record: DraftRecord,
        *,
        skipped: Callable[[int], bytes],
        is_last: Callable[[int], bool],
        max_tokens: int,
    ) -> None:
        """Take nothing yet.

        Args:
            prompt: the prompt's rows; nothing is generated.
            check: called between layers.
            lookup: finds drafts in texts; None: there are none.
            record: what drafts have been worth, kept up to date.
            skipped: of a token's number in the completion, what its row is not put through, as for
                `Rows`; the rows of a draft are put through what the first of them is.
            is_last: whether a completion ends with a token: nothing is drafted behind it.
            max_tokens: so many are taken, about; nothing is drafted beyond.
        """
        super().__init__(
            *(prompt, check, lookup, record), skips=None, is_last=is_last, max_tokens=max_tokens
        )
        self._skipped = skipped
        last = skipped(max_tokens)
        if any(any(last[: each.kept.stop]) for each in self._drafters):
            self._drafters.clear()  # they would draft with layers that are left out

    @property
    def layers(self) -> None:
        """Rows are not put through the same, as `Steps` says."""

    def _rows(self, token_ids: Sequence[int]) -> Sequence[Tensor | None]:
        """Compute a token's row and those of a draft; return the logits after each."""
        through = partial(self._through, range(self._num_layers), None)
        return self._prompt.decode_by(token_ids, through)

    def _finished(
        self, token_ids: Sequence[int], hidden: Tensor, rest: range, expected_ms: float
    ) -> Sequence[Tensor | None]:
        """Take drafted rows through what they lack, as `_rows`."""
        return self._prompt.finish_by(len(hidden), partial(self._through, rest, hidden))

    def _through(
        self, layers: range, hidden: Tensor | None, cache: KVCache, slots: Slots
    ) -> tuple[list[Tensor], Slots]:
        decoder, skipped = self._prompt.decoder, self._skipped(len(self._taken))
        states = decoder.forward(
            cache, slots, self._check, layers=layers, hidden=hidden, skipped=skipped
        )
        spared = sum(skipped[at].bit_count() for at in layers) / 2
        self._num_layer_runs += len(slots) * (len(layers) - spared)
        whole = slots[:0] if any(skipped) else slots
        return list(decoder.logits(states)), whole
