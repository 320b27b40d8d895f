"""Rows that a prompt has dropped, kept for a while: the same tokens may come again.

Undo and redo, a block cut here and pasted there, a function moved, a cursor that goes away and
comes back: what returns is turned to its new place and not computed again. Only within its segment
of the layout, as all that is turned: text that crosses the cursor changes its meaning.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model.kv_cache import KVCache, Slots
from ..wire.errors import memory_error
from .edit_plan import (
    SHORTEST_RUN,
    Hashes,
    Run,
    common_runs,
    rows_between,
    run_hashes,
    true_spans,
    without,
)
from .exactness import Exactness, OverwrittenRows, Returning

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Of the cache's rows, so many times: a place that was left and the one before it.
_CAPACITIES = 2
# Of what may be held, for rows that were computed again: a few edits' worth.
_OVERWRITTEN_SHARE = 0.25


class _Span(NamedTuple):
    """Rows dropped together, one after another in one segment; `rows` is `KVCache.copied`'s."""

    segment: int
    token_ids: Ints
    hashes: Hashes
    seen: Ints
    standing: NDArray[np.int8]
    debt: Floats
    rows: Tensor


class DroppedRows:
    """Spans that one cache has dropped, the oldest first out.

    Fewer than `SHORTEST_RUN` rows make no span: they only come back where the very text stands
    again that they were computed over, as do rows that were computed again. A span stays when its
    rows have returned: what was cut once may be pasted twice.

    Attributes:
        exactness: which of the cache's rows are exact.
    """

    def __init__(self, cache: KVCache) -> None:
        """Keep nothing yet; the cache has the record "segment"."""
        self._cache = cache
        self._spans: deque[_Span] = deque()  # the oldest first
        self._most_bytes = _CAPACITIES * cache.capacity * cache.copied_row_bytes
        self._max_bytes = self._most_bytes
        self._span_bytes = 0
        self.exactness = Exactness(cache)
        self._overwritten = OverwrittenRows(cache)

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return self._span_bytes + self._overwritten.num_bytes

    def bound(self, num_bytes: int) -> None:
        """Hold at most so many bytes, and never more than two caches' rows."""
        self._max_bytes = min(num_bytes, self._most_bytes)
        self.trim()

    def trim(self) -> None:
        """Let the oldest spans go until the rest is within the bound."""
        if self._overwritten.num_bytes > _OVERWRITTEN_SHARE * self._max_bytes:
            self._overwritten.clear()
        while self._spans and self.num_bytes > self._max_bytes:
            self._span_bytes -= self._spans.popleft().rows.nbytes

    def keep_overwritten(self, slots: Slots, debt: Floats) -> None:
        """Copy rows that are about to be computed again.

        Args:
            slots: (n,) the rows.
            debt: (n,) theirs.
        """
        is_other = ~self.exactness.is_of_this_text()[slots]
        self._keep_one_by_one(slots[is_other], debt[is_other])
        self.trim()

    def _keep_one_by_one(self, slots: Slots, debt: Floats) -> None:
        num_rows = int(_OVERWRITTEN_SHARE * self._max_bytes) // self._cache.copied_row_bytes
        try:
            self._overwritten.keep(slots, debt, num_rows)
        except Exception as error:
            if memory_error(error) is None:
                raise
            self._overwritten.clear()

    def keep(self, slots: Slots, numbers: Ints, debt: Floats) -> None:
        """Copy rows that are about to be dropped, as far as they lie in spans worth keeping.

        More may be held than the bound until `trim` is called: what returns in the same patch is
        to be found first.

        Args:
            slots: (n,) in order of position.
            numbers: (n,) their ranks among all rows in order of position.
            debt: (n,) theirs.
        """
        cache = self._cache
        segments = cache.record("segment")[slots]
        stretches = _stretches(numbers, segments)
        alone = rows_between([(start, end - start) for start, end in stretches], len(slots))
        if len(alone) > 1:  # one row is computed as soon as put back
            self._keep_one_by_one(slots[alone], debt[alone])
        for start, end in stretches:
            of_span = slots[start:end]
            if len(of_span) * cache.copied_row_bytes > self._max_bytes:
                continue
            try:
                rows = cache.copied(of_span)
            except Exception as error:
                if memory_error(error) is None:
                    raise
                self._spans.clear()  # they are a luxury, and there is no room for it
                self._span_bytes = 0
                return
            token_ids = cache.token_ids[of_span]
            self._forget(int(segments[start]), token_ids)
            self._spans.append(
                _Span(
                    int(segments[start]),
                    token_ids,
                    run_hashes(token_ids),
                    cache.record("seen")[of_span],
                    cache.record("standing")[of_span],
                    debt[start:end].copy(),
                    rows,
                )
            )
            self._span_bytes += rows.nbytes

    def _forget(self, segment: int, token_ids: Ints) -> None:
        """Let a span of the very same tokens go: the newer rows saw what is there now."""
        for number, span in enumerate(self._spans):
            if span.segment == segment and np.array_equal(span.token_ids, token_ids):
                self._span_bytes -= span.rows.nbytes
                del self._spans[number]
                return

    def prefer_own(
        self, runs: list[Run], order: Slots, segment_of: Ints, changed_from: int
    ) -> tuple[list[Run], list[Returning]]:
        """Find kept rows computed over this very text where the resident ones were not.

        After a return the resident rows may have seen another place's suffix, after an undo what
        was undone.

        Args:
            runs: resident rows that serve the wanted tokens, as `match_rows` returns them.
            order: (r,) slots of the resident rows, in order of position.
            segment_of: (m,) or longer, the segment of each wanted token.
            changed_from: before it the text is what it was: no better rows are kept.

        Returns:
            The runs that remain, and what is kept.
        """
        wanted = self.exactness.histories
        if changed_from >= len(wanted) - 1:
            return runs, []
        runs = self.exactness.with_own(runs, order, segment_of)
        if not self.num_bytes:
            return runs, []
        seen = self._cache.record("seen")
        is_left = np.arange(len(wanted)) >= changed_from
        for source, at, length in runs:
            part = slice(at, at + length)
            is_left[part] &= seen[order[source : source + length]] != wanted[part]
        found: list[Returning] = []
        num_missing = len(wanted) - sum(run.length for run in runs)
        # With little missing, spans hold better rows only of a text that was here before.
        if self._spans and (num_missing >= SHORTEST_RUN or self.exactness.was_settled()):
            found += self._find_own(is_left, wanted, segment_of)
        found += self._overwritten.find(np.flatnonzero(is_left), wanted)
        is_found = np.zeros(len(wanted), dtype=bool)
        for piece in found:
            is_found[piece.positions] = True
        return without(runs, true_spans(is_found)), found

    def _find_own(
        self, is_left: NDArray[np.bool_], seen: Ints, segment_of: Ints
    ) -> list[Returning]:
        """Return the rows of spans that were computed over this text, for places that are left.

        Those are left no more.
        """
        returning: list[Returning] = []
        place_of = dict(zip(seen.tolist(), range(len(seen)), strict=True))
        for span in reversed(self._spans):
            at = np.array([place_of.get(value, -1) for value in span.seen.tolist()])
            fits = np.flatnonzero((at >= 0) & (segment_of[at] == span.segment) & is_left[at])
            # What was seen at one place was seen there alone: spans and places go in step.
            for start, end in _stretches(fits, at[fits] - fits):
                part = slice(int(fits[start]), int(fits[end - 1]) + 1)
                returning.append(_part(span, part, int(at[fits[start]])))
                is_left[at[part]] = False
        return returning

    def find(self, missing: Ints, token_ids: Ints, segment_of: Ints) -> list[Returning]:
        """Find kept rows for missing tokens, the newest first.

        Nothing is found for a segment of which most would still be new: as in `match_rows`, the
        few rows were computed for another place.

        Args:
            missing: (n,) ascending places of the wanted tokens that no row serves.
            token_ids: (m,) all that is wanted.
            segment_of: (m,) or longer, the segment of each.
        """
        found: dict[int, list[Returning]] = {}
        for start, end in _stretches(missing, segment_of[missing]):
            at = int(missing[start])
            segment = int(segment_of[at])
            pieces = self._fill(segment, token_ids[at : at + end - start], at)
            found.setdefault(segment, []).extend(pieces)
        num_missing = Counter(segment_of[missing].tolist())
        returning = []
        for segment, pieces in found.items():
            num_wanted = np.count_nonzero(segment_of[: len(token_ids)] == segment)
            num_found = sum(len(piece.positions) for piece in pieces)
            if 2 * (num_missing[segment] - num_found) <= num_wanted:
                returning += pieces
        return returning

    def _fill(self, segment: int, wanted: Ints, at: int) -> Iterator[Returning]:
        """Yield the kept rows of a segment for a stretch of wanted tokens that begins at `at`."""
        gaps = [(0, len(wanted))]
        for span in self._with_common_run(segment, wanted):
            left = []
            for start, end in gaps:
                runs = common_runs(span.token_ids, wanted[start:end])
                runs = [run for run in runs if run.length >= SHORTEST_RUN]
                for source, to, length in runs:
                    part = slice(source, source + length)
                    yield _part(span, part, at + start + to)
                left += [(start + low, start + high) for low, high in _gaps(runs, end - start)]
            gaps = left

    def _with_common_run(self, segment: int, wanted: Ints) -> list[_Span]:
        """Return the spans of a segment that share a run with the wanted tokens, newest first."""
        spans = [span for span in reversed(self._spans) if span.segment == segment]
        if not spans:
            return []
        is_shared = np.isin(np.concatenate([s.hashes for s in spans]), run_hashes(wanted))
        owners = np.repeat(np.arange(len(spans)), [len(span.hashes) for span in spans])
        return [spans[number] for number in np.unique(owners[is_shared]).tolist()]


def _part(span: _Span, part: slice, at: int) -> Returning:
    records = span.seen[part], span.standing[part], span.debt[part]
    positions = np.arange(at, at + len(records[0]))
    return Returning(positions, *records, span.rows[:, :, part])


def _stretches(numbers: Ints, segments: Ints) -> list[tuple[int, int]]:
    """Return (start, end) of what ascends by ones in one segment, `SHORTEST_RUN` or longer."""
    if len(numbers) < SHORTEST_RUN:
        return []
    is_break = (np.diff(numbers) != 1) | (segments[1:] != segments[:-1])
    bounds = [0, *(np.flatnonzero(is_break) + 1).tolist(), len(numbers)]
    return [(start, end) for start, end in pairwise(bounds) if end - start >= SHORTEST_RUN]


def _gaps(runs: list[Run], end: int) -> list[tuple[int, int]]:
    """Return (start, end) of what ascending runs leave of 0 .. end - 1, if long enough."""
    found, reached = [], 0
    for run in [*runs, Run(0, end, 0)]:
        if run.at - reached >= SHORTEST_RUN:
            found.append((reached, run.at))
        reached = run.at + run.length
    return found
