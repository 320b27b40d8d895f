"""Which rows are exact: what a full prefill of the tokens that are there now would give.

A row stays what it is wherever it is turned. When the tokens before it are those again that it was
computed over, it is exact again: so undoing a change makes fresh what that had made stale, but for
what was computed in between.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..model.kv_cache import KVCache, Slots

Ints = NDArray[np.int64]


class Exactness:
    """What the rows of one cache were computed over (its record "seen"), and what is there now.

    Attributes:
        histories: `histories` of the prompt's tokens, (num_tokens,).
    """

    def __init__(self, cache: KVCache) -> None:
        """Add the record: of rows that were fresh when they were computed; else 0."""
        self._cache = cache
        self.histories: Ints = np.empty(0, dtype=np.int64)
        cache.add_record("seen", np.int64, 0)

    def follow(self, token_ids: Ints) -> None:
        """Say what the prompt is now."""
        self.histories = histories(token_ids)

    def forget(self, slots: Slots) -> None:
        """Take rows for nothing: a pass begins to compute them, and may be left half done."""
        self._cache.record("seen")[slots] = 0

    def note(self, computed: Slots) -> Slots:
        """Note what was computed; make fresh the first rows as far as all are exact, return them.

        Exact are those that are so again, and those just computed over none that is not.
        """
        cache, num_tokens = self._cache, len(self.histories)
        of_prompt = np.flatnonzero(cache.positions < num_tokens)
        positions = cache.positions[of_prompt]
        is_exact = np.zeros(num_tokens + 1, dtype=bool)  # the last never is
        is_exact[positions] = cache.record("seen")[of_prompt] == self.histories[positions]
        is_exact[: cache.num_fresh] = True
        is_exact[cache.positions[computed]] = True
        cache.num_fresh = max(cache.num_fresh, int(is_exact.argmin()))
        is_fresh = positions < cache.num_fresh
        fresh = of_prompt[is_fresh]
        cache.record("seen")[fresh] = self.histories[positions[is_fresh]]
        return fresh

    def of_rows(self) -> NDArray[np.bool_]:
        """Return of each row whether it is known to be exact, (num_rows,)."""
        positions, last = self._cache.positions, len(self.histories) - 1
        seen = self._cache.record("seen")
        return (positions <= last) & (seen == self.histories[np.minimum(positions, last)])


def histories(token_ids: Ints) -> Ints:
    """Return a hash of each token together with all before it, (n,).

    It stands for all of them where rows are told exact: of 64 bits, two are not alike by chance.
    """
    # Any odd numbers do, another for every place.
    places = np.arange(1, len(token_ids) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    places ^= places >> np.uint64(29)
    mixed = (token_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.cumsum(mixed * (places | np.uint64(1)), dtype=np.uint64).view(np.int64)
