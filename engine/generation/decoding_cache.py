"""The rows of what comes after a prompt: generated tokens, and supposed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..model.decoder import Check
from ..model.heads import Logits
from ..model.kv_cache import KVCache, Slots
from ..model.layers import go_on
from ..prompt.prompt_cache import PromptCache

Result = TypeVar("Result")

# Added to the positions of rows that a pass must not see: they come after all that it computes.
_MASKED = 1 << 40


class DecodingCache(PromptCache):
    """A prompt's cache that is decoded on, and asked what the model says to tokens behind it."""

    def decode(self, token_id: int, check: Check, layers: range | None = None) -> Tensor:
        """Append a generated token and return the logits after it.

        The row stays until a prompt does not want it: an accepted completion is not computed again.

        Args:
            token_id: the token.
            check: called between layers.
            layers: those that it goes through, the first ones; None: all. Where some are left out
                the row is not whole: `drop_generated` before anything else reads it.
        """
        cache = self.rows
        with self._appended_behind([token_id]) as slots:
            logits = self.decoder.last_logits(cache, slots, check, layers=layers)
        cache.mark_computed(slots)
        self.count_forwarded(slots)
        return logits

    def decode_by(
        self,
        token_ids: Sequence[int],
        compute: Callable[[KVCache, Slots], tuple[Result, Slots]],
    ) -> Result:
        """Append generated tokens that the caller computes; return what it makes of them.

        Args:
            token_ids: the tokens.
            compute: computes their rows, given the cache and their slots; returns, besides, the
                slots of those that went through all layers. The others are stale until they are
                healed; their keys and values must be there, of every layer, before anything else
                reads them.
        """
        with self._appended_behind(token_ids):
            return self.finish_by(len(token_ids), compute)

    def finish_by(
        self, count: int, compute: Callable[[KVCache, Slots], tuple[Result, Slots]]
    ) -> Result:
        """Have the caller compute what the last rows lack, as `decode_by` does."""
        slots = self._generated(count)
        result, whole = compute(self.rows, slots)
        self.rows.mark_computed(whole)
        self.count_forwarded(slots)
        return result

    def decode_several(self, token_ids: Sequence[int], check: Check) -> Logits:
        """Append generated tokens in one pass; return the logits after each.

        `drop_generated` takes back those that are not wanted, as if they had never been there.
        The next pass over the cache may overwrite the logits.
        """
        cache = self.rows
        with self._appended_behind(token_ids) as slots:
            logits = self.decoder.decode(cache, slots, check)
        cache.mark_computed(slots)
        self.count_forwarded(slots)
        return logits

    def prepare(self) -> bool:
        """Capture one more graph of decode steps, on a GPU; return whether there was one to be.

        No completion then waits for it. All rows stay what they are.
        """
        cache = self._cache
        count = None if cache is None else self.decoder.uncaptured(cache)
        if cache is None or count is None or count > self.room:
            return False
        with self._supposed([0] * count) as slots:
            while self.decoder.uncaptured(cache) == count:
                self.decoder.decode(cache, slots, go_on)
        return True

    def begin(self, token_ids: Sequence[int], check: Check, layers: range | None = None) -> Tensor:
        """Append generated tokens and take them through the first layers, by default all.

        Rows that lack layers are to be finished, or dropped, before any other pass sees them.

        Returns:
            (n, hidden_size) float32, the last of these layers' output.
        """
        with self._appended_behind(token_ids) as slots:
            return self.decoder.forward(self.rows, slots, check, layers=layers)

    def look_ahead(self, hidden: Tensor, check: Check, layers: range, skipped: bytes) -> Tensor:
        """Take the last row through layers but for what is skipped, to see what it would say.

        It lacks these layers all the same: what this leaves as its keys and values there is
        written over by `finish`.

        Args:
            hidden: (1, hidden_size), what `begin` returned of it.
            check: called between layers.
            layers: those behind it.
            skipped: as for `Rows`.

        Returns:
            (1, hidden_size) float32, the last of these layers' output.
        """
        slots = self._generated(len(hidden))
        return self.decoder.forward(
            self.rows, slots, check, layers=layers, hidden=hidden, skipped=skipped
        )

    def finish(self, hidden: Tensor, check: Check, layers: range) -> Tensor:
        """Take the last rows through the layers that they lack.

        Args:
            hidden: (n, hidden_size), what `begin` returned of each.
            check: called between layers.
            layers: the layers.

        Returns:
            (n, vocab_size) logits after each.
        """

        def compute(cache: KVCache, slots: Slots) -> tuple[Tensor, Slots]:
            return self.decoder.forward(cache, slots, check, layers=layers, hidden=hidden), slots

        return self.decoder.logits(self.finish_by(len(hidden), compute))

    def _appended_behind(self, token_ids: Sequence[int]) -> AbstractContextManager[Slots]:
        """Append tokens behind the last of all rows, for a pass to compute."""
        positions = self.rows.positions.max() + 1 + np.arange(len(token_ids))
        return self.appended(np.array(token_ids, dtype=np.int64), positions)

    def _generated(self, count: int) -> Slots:
        """Return the rows that were appended last."""
        return np.arange(self.rows.num_rows - count, self.rows.num_rows)

    def score(self, token_ids: Sequence[int], check: Check) -> Tensor:
        """Return what the model predicts at each of these tokens, were they to come next.

        Args:
            token_ids: n tokens after the prompt, at least one.
            check: called between layers.

        Returns:
            (n, vocab_size) float32 logits; row i predicts `token_ids[i]`. The rows added for it
            are dropped again.

        Raises:
            ContextTooLong: the capacity has no room for n - 1 rows more.
        """
        first = self.logits(check)[None]
        if len(token_ids) == 1:
            return first
        with self._supposed(token_ids[:-1]) as slots:
            hidden = self.decoder.forward(self.rows, slots, check)
        return torch.cat([first, self.decoder.logits(hidden)])

    def states(
        self, token_ids: Sequence[int], depths: Sequence[int], check: Check
    ) -> Iterator[Tensor]:
        """Yield what rows are after some layers, were these tokens to come next.

        Args:
            token_ids: as for `score`; the rows are dropped when all was yielded or the caller is
                done with it.
            depths: numbers of layers, ascending.
            check: called between layers.

        Yields:
            For each depth (n, hidden_size) float32; row i is that which predicts `token_ids[i]`.
        """
        with self._supposed(token_ids[:-1]) as slots:
            slots = np.concatenate([self._last_row(), slots])
            hidden, done = None, 0
            for depth in depths:
                through = range(done, depth)
                hidden = self.decoder.forward(
                    self.rows, slots, check, layers=through, hidden=hidden
                ).clone()
                done = depth
                yield hidden

    @contextmanager
    def _supposed(self, token_ids: Sequence[int]) -> Iterator[Slots]:
        """Have rows of tokens right after the prompt, to be computed, and leave all as it was."""
        cache = self.rows
        num_fresh, generation = cache.num_fresh, cache.generation
        generated = np.flatnonzero(cache.positions >= self.num_tokens)
        fed = np.array(token_ids, dtype=np.int64)
        slots = cache.append(fed, self.num_tokens + np.arange(len(fed)))
        cache.positions[generated] += _MASKED
        try:
            yield slots
        finally:
            cache.remove(slots)
            cache.positions[generated] -= _MASKED
            cache.num_fresh, cache.generation = num_fresh, generation
