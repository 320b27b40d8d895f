"""Which rows of a cache serve a prompt: they stay, turn or come back; what is left is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..model.kv_cache import KVCache, Slots
from .dependencies import Dependencies
from .dropped_rows import DroppedRows
from .edit_plan import SHORTEST_RUN, Run, moved_rows, rows_between
from .exactness import Returning
from .policy import Policy

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_NO_ROWS: Slots = np.empty(0, dtype=np.int64)

# Where a row's keys and values come from since the last completion (record "provenance").
KEPT, TURNED, REPAIRED, RECOMPUTED = range(4)


class Wanted(NamedTuple):
    """A prompt in tokens.

    Attributes:
        token_ids: (n,).
        segment_of: (n + 1,) number of each token's segment, and of what is generated after them.
        segments: tokens of each segment, by number, in order.
        num_text: tokens before the mark that says what is wanted; all where there is none.
    """

    token_ids: Ints
    segment_of: Ints
    segments: Mapping[int, Ints]
    num_text: int


class Placement:
    """Brings one cache's rows to where a prompt wants them.

    Attributes:
        dropped: rows that were dropped and may come back, under a policy that keeps them.
    """

    def __init__(self, cache: KVCache, policy: Policy, dependencies: Dependencies | None) -> None:
        """Add the records to a cache that has no rows yet.

        Args:
            cache: the rows.
            policy: which of them are used again.
            dependencies: what they lean on, told of every change; None where nobody asks.
        """
        self._cache, self._policy, self._dependencies = cache, policy, dependencies
        cache.add_record("segment", np.int64, -1)
        cache.add_record("provenance", np.int8, RECOMPUTED)
        self.dropped = DroppedRows(cache) if policy.keeps_dropped else None
        self._num_placed = 0  # tokens of the prompt that rows were last placed for

    def num_missing(self, wanted: Wanted) -> int:
        """Return how many rows `place` would leave to be computed; no row is touched."""
        runs = self._policy.reuse(self._resident(self._cache.by_position()), wanted.segments)
        missing = rows_between([(run.at, run.length) for run in runs], len(wanted.token_ids))
        if self.dropped is None or len(missing) < SHORTEST_RUN:
            return len(missing)
        found = self.dropped.find(missing, wanted.token_ids, wanted.segment_of)
        return len(missing) - sum(len(piece.positions) for piece in found)

    def place(self, wanted: Wanted) -> Ints:
        """Keep, turn, drop and bring back rows; return the positions whose rows are missing.

        What a GPU takes longest for is launched first; it works while the rest is found out here.
        """
        cache = self._cache
        order = cache.by_position()
        num_of_prompt = len(order)
        if num_of_prompt and cache.positions[order[-1]] >= self._num_placed:
            num_of_prompt = int(np.count_nonzero(cache.positions < self._num_placed))
        runs = self._policy.reuse(self._resident(order), wanted.segments)
        self._turn(runs, order)
        own: list[Returning] = []
        if self.dropped is not None:
            changed_from = self.dropped.exactness.follow(wanted.token_ids, wanted.num_text)
            matched = runs
            runs, own = self.dropped.prefer_own(matched, order, wanted.segment_of, changed_from)
            if runs is not matched:
                self._turn(runs, order)
        for source, at, length in runs if self._policy.crosses_segments else ():
            segments = wanted.segment_of[at : at + length]
            cache.record("segment")[order[source : source + length]] = segments
        used = sorted((run.source, run.length) for run in runs)
        numbers = rows_between(used, len(order))
        removed = order[numbers]
        if self.dropped is not None and len(removed) > 1:
            # Nothing generated. Their debt is noted before it grows by what goes with them: that
            # may return with them too.
            of_prompt = numbers < num_of_prompt
            kept = removed[of_prompt]
            self.dropped.keep(kept, numbers[of_prompt], self._debt(kept))
        if self._dependencies is not None and len(order):
            self._dependencies.charge((removed, _beside_longer(runs, order)), (1.0, 0.5))
        cache.remove(removed)
        self._num_placed = len(wanted.token_ids)
        self._insert(own, 0.0, wanted)
        missing = rows_between([(run.at, run.length) for run in runs], len(wanted.token_ids))
        missing = _less(missing, own)
        if self.dropped is not None:
            if len(missing) >= SHORTEST_RUN:
                missing = self._bring_back(missing, self.dropped, wanted)
            self.dropped.trim()
        self.note_exact(_NO_ROWS)
        return missing

    def _turn(self, runs: Sequence[Run], order: Slots) -> None:
        """Turn the rows of runs that are not in their place."""
        slots, positions = moved_rows(runs, order, self._cache.positions)
        if len(slots):
            self._cache.turn(slots, positions)
            self._cache.record("provenance")[slots] = TURNED

    def _debt(self, slots: Slots) -> Floats:
        """Return what rows owe, (n,); nothing where nobody asks."""
        if self._dependencies is None:
            return np.zeros(len(slots), dtype=np.float32)
        return self._dependencies.debt[slots]

    def _bring_back(self, missing: Ints, dropped: DroppedRows, wanted: Wanted) -> Ints:
        """Turn dropped rows to the places where their tokens are wanted; return what is missing.

        They have seen another text, or none may know whether: nothing followed what they leaned on
        while they were away. So they owe as much as the rows that owe much, for repair to look at
        them where the cursor's row does.
        """
        least = 0.0 if self._dependencies is None else self._dependencies.high_debt()
        found = dropped.find(missing, wanted.token_ids, wanted.segment_of)
        self._insert(found, least, wanted)
        return _less(missing, found)

    def _insert(self, returning: Sequence[Returning], least_debt: float, wanted: Wanted) -> None:
        """Turn dropped rows into their places."""
        cache = self._cache
        for positions, seen, standing, debt, rows in returning:
            slots = cache.insert(wanted.token_ids[positions], positions, rows)
            cache.record("segment")[slots] = wanted.segment_of[positions]
            cache.record("provenance")[slots] = TURNED
            cache.record("seen")[slots] = seen
            cache.record("standing")[slots] = standing
            if self._dependencies is not None:
                self._dependencies.debt[slots] = np.maximum(debt, least_debt)

    def _resident(self, order: Slots) -> dict[int, Ints]:
        """Return the tokens of the rows in order of position, by segment."""
        cache = self._cache
        token_ids, segments = cache.token_ids.take(order), cache.record("segment").take(order)
        inner = np.flatnonzero(segments[1:] != segments[:-1]) + 1
        bounds = [0, *inner.tolist(), len(order)] if len(order) else []
        return {int(segments[start]): token_ids[start:end] for start, end in pairwise(bounds)}

    def forget(self, slots: Slots) -> None:
        """Take rows for nothing: a pass begins to compute them."""
        if self.dropped is not None:
            self.dropped.keep_overwritten(slots, self._debt(slots))
            self.dropped.exactness.forget(slots)

    def forget_all(self) -> None:
        """Take all rows for nothing, and keep none that were dropped: other weights made them."""
        if self.dropped is not None:
            self.dropped.clear()
            self.dropped.exactness.forget_all()

    def note_exact(self, computed: Slots) -> None:
        """Let rows be fresh that are exact, again or just computed, as all before them are."""
        if self.dropped is not None:
            fresh = self.dropped.exactness.note(computed)
            if self._dependencies is not None:
                self._dependencies.debt[fresh] = 0

    def note_done(self, slots: Slots) -> None:
        """Note that rows just computed were computed for what they are worth."""
        if self.dropped is not None:
            self.dropped.exactness.note_done(slots)

    def is_done(self) -> NDArray[np.bool_]:
        """Return of each row whether it is exact, or done since the text before it changed."""
        if self.dropped is None:
            return np.zeros(self._cache.num_rows, dtype=bool)
        return self.dropped.exactness.is_done()

    def note_settled(self) -> None:
        """Note that nothing more is to be done before a completion from this text."""
        if self.dropped is not None:
            self.dropped.exactness.note_settled()

    def is_settled(self) -> bool:
        """Return whether the rows are as good as when that was noted of this text."""
        return self.dropped is not None and self.dropped.exactness.is_settled()


def _less(missing: Ints, returning: Sequence[Returning]) -> Ints:
    """Return the missing places without those that are served."""
    if not returning:
        return missing
    return np.setdiff1d(missing, np.concatenate([p.positions for p in returning]), True)


def _beside_longer(runs: Sequence[Run], order: Slots) -> Slots:
    """Return the rows on either side of what is inserted where less was before."""
    found = []
    for run, following in pairwise(runs):
        end, new_end = run.source + run.length, run.at + run.length
        if following.at - new_end > max(0, following.source - end):
            found += [order[end - 1], order[following.source]]
    return np.array(found, dtype=np.int64)
