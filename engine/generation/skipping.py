"""Drafts verified by some of the sub-layers: which, is decided by the position alone.

SkipDecode (arXiv 2307.02628, section 3) runs the first layers, which warm up, and the last ones,
fewer of them from token to token: a row lacks no layer that a later one goes through, so nothing is
ever made up, and rows of several sequences at one position go through the same layers. A set of
sub-layers that are left out everywhere is the schedule that does not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ..model.kv_cache import KVCache, Slots
from .partial_steps import PartialSteps
from .speculation import Decoding

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


class SkippingSteps(PartialSteps):
    """Decode steps over drafts, through fewer sub-layers.

    Keys and values that a row has no state for are made of the state that passes by; the row is
    stale from then on, for healing to make it exact.
    """

    def __init__(self, decoding: Decoding, skipped: Callable[[int], bytes]) -> None:
        """Take nothing yet.

        Args:
            decoding: the completion.
            skipped: of a token's number in it, what its row is not put through, as for `Rows`; the
                rows of a draft are put through what the first of them is.
        """
        last = skipped(decoding.max_tokens)
        super().__init__(decoding, next((at for at, each in enumerate(last) if each), len(last)))
        self._skipped = skipped

    def _through(
        self,
        token_ids: Sequence[int],
        start: int,
        hidden: Tensor | None,
        cache: KVCache,
        slots: Slots,
    ) -> tuple[list[Tensor | None], Slots]:
        decoder, skipped = self._prompt.decoder, self._skipped(len(self._taken))
        layers = range(start, self._num_layers)
        states = decoder.forward(
            cache, slots, self._check, layers=layers, hidden=hidden, skipped=skipped
        )
        spared = sum(skipped[at].bit_count() for at in layers) / 2
        self._num_layer_runs += len(slots) * (len(layers) - spared)
        whole = slots[:0] if any(skipped) else slots
        return list(decoder.logits(states)), whole
