"""What each row was computed over, and which rows are exact: what a full prefill would give.

A row stays what it is wherever it is turned. When the tokens before it are those again that it was
computed over, it is again as good as it was then: so undoing a change makes fresh what that had
made stale, and what was computed again in between is put back (`OverwrittenRows`).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model.kv_cache import KVCache, Slots
from .edit_plan import Run, rows_between

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# How good a row is while the text before it is what it was computed over (record "standing"):
# computed where none was, or as the cursor's; computed again for what it is worth; exact.
PATCHED, DONE, EXACT = range(3)

# Of a history, for the place: windows have a million tokens at most.
_PLACE_BITS = 20

_ALL = slice(None)

# Texts that are remembered as settled.
_NUM_SETTLED = 64


class Exactness:
    """What the rows of one cache were computed over (its record "seen"), and what is there now.

    Attributes:
        histories: `histories` of the prompt's tokens, (num_tokens,).
    """

    def __init__(self, cache: KVCache) -> None:
        """Add the records: of what a row was computed over, 0 for what nobody knows."""
        self._cache = cache
        self.histories: Ints = np.empty(0, dtype=np.int64)
        cache.add_record("seen", np.int64, 0)
        cache.add_record("standing", np.int8, PATCHED)
        # By a text's last history, how many rows had been computed over it. What is said to be
        # wanted there is not asked: it changes no row but its own.
        self._settled: OrderedDict[int, int] = OrderedDict()
        self._num_text = 0
        self._num_noted = 0  # so many first rows are fresh and noted as exact

    def follow(self, token_ids: Ints, num_text: int) -> int:
        """Say what the prompt is now; return the first place with another history than before.

        Args:
            token_ids: (m,) all of it.
            num_text: tokens before the mark that says what is wanted.
        """
        self._num_text = num_text
        old, self.histories = self.histories, histories(token_ids)
        length = min(len(old), len(token_ids))
        is_new = old[:length] != self.histories[:length]
        return int(is_new.argmax()) if is_new.any() else length

    def forget(self, slots: Slots) -> None:
        """Take rows for nothing: a pass begins to compute them, and may be left half done."""
        self._cache.record("seen")[slots] = 0
        self._num_noted = min(self._num_noted, int(self._cache.positions[slots].min()))

    def forget_all(self) -> None:
        """Take all rows for nothing: their weights are others now."""
        self._cache.record("seen")[:] = 0
        self._cache.record("standing")[:] = PATCHED
        self._num_noted = 0
        self._settled.clear()

    def was_settled(self) -> bool:
        """Return whether this very text was noted so, of late."""
        return self._num_text > 0 and int(self.histories[self._num_text - 1]) in self._settled

    def with_own(self, runs: list[Run], order: Slots, segment_of: Ints) -> list[Run]:
        """Return runs, and those of unused rows that were computed over this very text.

        After a return such rows lie between others that were computed again at the other place,
        in runs too short to be matched by their tokens.

        Args:
            runs: resident rows that serve the prompt's tokens, as `match_rows` returns them.
            order: (r,) slots of the resident rows, in order of position.
            segment_of: (m,) or longer, the segment of each token.
        """
        unused = rows_between(sorted((run.source, run.length) for run in runs), len(order))
        if not len(unused) or sum(run.length for run in runs) == len(self.histories):
            return runs
        slots = order[unused]
        seen, segments = self._cache.record("seen")[slots], self._cache.record("segment")[slots]
        rows, places = found_at(seen, self.histories)
        if not len(rows):
            return runs
        is_unserved = np.ones(len(self.histories), dtype=bool)
        for run in runs:
            is_unserved[run.at : run.at + run.length] = False
        fits = is_unserved[places] & (segments[rows] == segment_of[places])
        sources, places = unused[rows[fits]], places[fits]
        if not len(places):
            return runs
        is_break = (np.diff(places) != 1) | (np.diff(sources) != 1)
        bounds = [0, *(np.flatnonzero(is_break) + 1).tolist(), len(places)]
        own = [Run(int(sources[a]), int(places[a]), b - a) for a, b in pairwise(bounds)]
        return sorted([*runs, *own], key=lambda run: run.at)

    def note(self, computed: Slots) -> Slots:
        """Note what was computed; make fresh the first rows as far as all are exact, return them.

        Exact are those that are so again, and those just computed over none that is not.
        """
        cache, num_tokens = self._cache, len(self.histories)
        seen, standing = cache.record("seen"), cache.record("standing")
        seen[computed] = self.histories[cache.positions[computed]]
        standing[computed] = PATCHED
        num_fresh = min(cache.num_fresh, num_tokens)
        is_noted, self._num_noted = self._num_noted >= num_fresh, num_fresh
        if is_noted and not self._is_exact_at(cache.num_fresh):
            return computed[:0]
        of_prompt = np.flatnonzero(cache.positions < num_tokens)
        positions = cache.positions[of_prompt]
        is_exact = np.zeros(num_tokens + 1, dtype=bool)  # the last never is
        of_this = seen[of_prompt] == self.histories[positions]
        is_exact[positions] = of_this & (standing[of_prompt] == EXACT)
        is_exact[: cache.num_fresh] = True
        is_exact[cache.positions[computed]] = True
        cache.num_fresh = max(cache.num_fresh, int(is_exact.argmin()))
        self._num_noted = min(cache.num_fresh, num_tokens)
        is_fresh = positions < cache.num_fresh
        fresh = of_prompt[is_fresh]
        seen[fresh] = self.histories[positions[is_fresh]]
        standing[fresh] = EXACT
        return fresh

    def _is_exact_at(self, position: int) -> bool:
        """Return whether there is a row at a position, and it is exact again."""
        slots = np.flatnonzero(self._cache.positions == position)
        is_exact = self._cache.record("standing")[slots] == EXACT
        return bool((is_exact & self.is_of_this_text(slots)).any())

    def note_done(self, slots: Slots) -> None:
        """Note that rows just computed were computed for what they are worth."""
        standing = self._cache.record("standing")
        standing[slots] = np.maximum(standing[slots], DONE)

    def is_of_this_text(self, slots: Slots | slice = _ALL) -> NDArray[np.bool_]:
        """Return of rows, by default all, whether they saw what is before them now, (n,)."""
        positions, last = self._cache.positions[slots], len(self.histories) - 1
        seen = self._cache.record("seen")[slots]
        return (positions <= last) & (seen == self.histories[np.minimum(positions, last)])

    def is_done(self) -> NDArray[np.bool_]:
        """Return of each row whether it is exact or done over this very text, (num_rows,)."""
        return self.is_of_this_text() & (self._cache.record("standing") != PATCHED)

    def note_settled(self) -> None:
        """Note that nothing more is to be done before a completion from this text."""
        if self._num_text:
            text = int(self.histories[self._num_text - 1])
            self._settled[text] = self._num_of_this_text()
            self._settled.move_to_end(text)
            if len(self._settled) > _NUM_SETTLED:
                self._settled.popitem(last=False)

    def is_settled(self) -> bool:
        """Return whether the rows are as good as when this text was noted so."""
        text = int(self.histories[self._num_text - 1]) if self._num_text else None
        num_then = None if text is None else self._settled.get(text)
        return num_then is not None and self._num_of_this_text() >= num_then

    def _num_of_this_text(self) -> int:
        of_text = self._cache.positions < self._num_text
        return int(np.count_nonzero(of_text & self.is_of_this_text()))


class Returning(NamedTuple):
    """Kept rows that serve wanted tokens.

    Attributes:
        positions: of those tokens, (n,) ascending.
        seen, standing: the rows' records of these names, (n,); see `Exactness`.
        debt: that they had when they were kept, (n,).
        rows: for `KVCache.insert`.
    """

    positions: Ints
    seen: Ints
    standing: NDArray[np.int8]
    debt: Floats
    rows: Tensor


class OverwrittenRows:
    """Copies of rows that were computed again or dropped one by one, the newest so many.

    They serve where the very text stands again that they were computed over, wherever they lie.
    """

    def __init__(self, cache: KVCache) -> None:
        """Keep nothing yet; the cache has the records of `Exactness`."""
        self._cache = cache
        self._rows: Tensor | None = None
        self._next = 0  # the oldest of them
        self._seen: Ints = np.empty(0, dtype=np.int64)
        self._standing: NDArray[np.int8] = np.empty(0, dtype=np.int8)
        self._debt: Floats = np.empty(0, dtype=np.float32)

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return 0 if self._rows is None else self._rows.nbytes

    def clear(self) -> None:
        """Give the memory back."""
        self._rows = None
        self._seen = self._seen[:0]

    def keep(self, slots: Slots, debt: Floats, most_rows: int) -> None:
        """Copy rows that are about to be computed again or dropped.

        Args:
            slots: (n,) the rows.
            debt: (n,) theirs.
            most_rows: that are held, once there are any.
        """
        seen = self._cache.record("seen")[slots]
        is_known = seen != 0
        slots, seen, debt = slots[is_known], seen[is_known], debt[is_known]
        size = most_rows if self._rows is None else len(self._seen)
        if not 1 < len(slots) <= size:  # one is computed as soon as put back
            return
        (copied,) = self._cache.copied(slots)
        if self._rows is None:
            self._rows = copied.new_empty((*copied.shape[:2], size, copied.shape[3]))
            self._seen = np.zeros(size, dtype=np.int64)
            self._standing = np.zeros(size, dtype=np.int8)
            self._debt = np.zeros(size, dtype=np.float32)
            self._next = 0
        newer = np.zeros(int(_places_of(seen).max()) + 1, dtype=np.int64)
        newer[_places_of(seen)] = seen
        self._seen[found_at(self._seen, newer)[0]] = 0  # what is newer is better
        at = (self._next + np.arange(len(slots))) % size
        # As slices: a GPU would be waited for to read numbers.
        num_before_end = min(len(slots), size - self._next)
        self._rows[:, :, self._next : self._next + num_before_end] = copied[:, :, :num_before_end]
        if num_before_end < len(slots):
            self._rows[:, :, : len(slots) - num_before_end] = copied[:, :, num_before_end:]
        self._next = (self._next + len(slots)) % size
        self._seen[at], self._debt[at] = seen, debt
        self._standing[at] = self._cache.record("standing")[slots]

    def found(self, wanted: Ints) -> tuple[Ints, Ints]:
        """Return the numbers of kept rows that were computed over a text, and their places in it.

        Args:
            wanted: (m,) histories of the text.
        """
        return found_at(self._seen, wanted)

    def returning(self, kept: Ints, positions: Ints) -> list[Returning]:
        """Return kept rows for some places, (n,) each; none are no piece."""
        if self._rows is None or not len(kept):
            return []
        positions, first = np.unique(positions, return_index=True)  # what was pasted twice is twice
        kept = kept[first]
        records = self._seen[kept], self._standing[kept], self._debt[kept]
        (at,) = self._cache.on_device(kept)
        return [Returning(positions, *records, self._rows.index_select(2, at))]


def histories(token_ids: Ints) -> Ints:
    """Return a hash of each token together with all before it, (n,), and in it the token's place.

    It stands for all of them where rows are told exact, and is compared at that place only: of 44
    bits, two are not alike by chance.
    """
    mixed = token_ids.astype(np.uint64)
    mixed += np.uint64(1)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    places, factors = _places(1 << len(token_ids).bit_length())
    mixed *= factors[: len(token_ids)]
    hashed = np.cumsum(mixed, out=mixed)
    hashed <<= np.uint64(_PLACE_BITS)
    hashed |= places[: len(token_ids)]
    return hashed.view(np.int64)


def found_at(seen: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    """Find rows that were computed over a text.

    Args:
        seen: (n,) what rows were computed over, 0 for what nobody knows.
        wanted: (m,) the histories of the text, at least one.

    Returns:
        Numbers of rows, (k,), and the place of each.
    """
    places = _places_of(seen)
    inside = np.minimum(places, len(wanted) - 1)
    rows = np.flatnonzero((wanted[inside] == seen) & (seen != 0))
    return rows, places[rows]


def _places_of(seen: Ints) -> Ints:
    return seen & ((1 << _PLACE_BITS) - 1)


@lru_cache(maxsize=2)
def _places(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the numbers from 0, and an odd factor for each; any do."""
    places = np.arange(size, dtype=np.uint64)
    factors = (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return places, (factors ^ (factors >> np.uint64(29))) | np.uint64(1)
