"""Decode steps over drafts whose rows are put through some of the layers: what the ways share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ..model.kv_cache import KVCache, Slots
from .speculation import Decoding, SpeculativeSteps


class PartialSteps(SpeculativeSteps):
    """Decode steps whose rows are not all put through all layers; `_through` says how far."""

    def __init__(self, decoding: Decoding, num_whole: int) -> None:
        """Take nothing yet.

        Args:
            decoding: the completion.
            num_whole: layers, the first ones, that every row goes through: none drafts with more,
                nor with a set of sub-layers, as it would read rows that lack some.
        """
        super().__init__(decoding)
        if any(num_whole < each.kept.stop for each in self._drafters):
            self._drafters.clear()

    @property
    def layers(self) -> None:
        """Rows are not put through the same, as `Steps` says."""

    def _rows(self, token_ids: Sequence[int]) -> Sequence[Tensor | None]:
        """Compute a token's row and those of a draft; return the logits after each, as they are."""
        return self._prompt.decode_by(token_ids, partial(self._through, token_ids, 0, None))

    def _finished(
        self, token_ids: Sequence[int], hidden: Tensor, rest: range, expected_ms: float
    ) -> Sequence[Tensor | None]:
        """Take drafted rows through what they lack, as `_rows`."""
        through = partial(self._through, token_ids, rest.start, hidden)
        return self._prompt.finish_by(len(token_ids), through)

    def _through(
        self,
        token_ids: Sequence[int],
        start: int,
        hidden: Tensor | None,
        cache: KVCache,
        slots: Slots,
    ) -> tuple[list[Tensor | None], Slots]:
        """Compute rows.

        Args:
            token_ids: of the rows: a token that is taken, and those of a draft behind it.
            start: layers that the rows have been through.
            hidden: (n, hidden_size) their states there; None at 0.
            cache: where the rows are.
            slots: theirs.

        Returns:
            The logits after each, None behind a row that shows what was drafted after it to be
            wrong; and the slots of rows that went through all layers.
        """
        raise NotImplementedError
