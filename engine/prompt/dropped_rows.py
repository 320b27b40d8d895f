"""Rows that a prompt has dropped, kept for a while: the same tokens may come again.

Undo and redo, a block cut here and pasted there, a function moved, a cursor that goes away and
comes back: what returns is turned to its new place and not computed again. Only within its segment
of the layout, as all that is turned: text that crosses the cursor changes its meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model.device_memory import Slabs
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
from .exactness import Exactness, OverwrittenRows, Returning, found_at

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Of the cache's rows, so many times: a place that was left and the one before it.
_CAPACITIES = 2
# Of what may be held, for rows that were computed again: a few edits' worth.
_OVERWRITTEN_SHARE = 0.25
# As many rows as the cache has are in so many slabs.
_SLABS = 16


_Key = tuple[int, bytes]  # of a span: its segment and its tokens


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
        self._spans: dict[_Key, _Span] = {}  # the oldest first
        self._most_bytes = _CAPACITIES * cache.capacity * cache.copied_row_bytes
        self._max_bytes = self._most_bytes
        slab_bytes = cache.capacity // _SLABS * cache.copied_row_bytes
        self._slabs = Slabs(slab_bytes, cache.copied_dtype, cache.storage[0].device)
        self._held: Counter[int] = Counter()  # by where memory begins, spans that have a part of it
        self._span_bytes = 0
        self.exactness = Exactness(cache)
        self._overwritten = OverwrittenRows(cache)

    @property
    def num_bytes(self) -> int:
        """Memory that is held: of a slab the whole, as long as a span has a part of it."""
        return self._span_bytes + self._overwritten.num_bytes

    def bound(self, num_bytes: int) -> None:
        """Hold at most so many bytes, and never more than two caches' rows."""
        self._max_bytes = min(num_bytes, self._most_bytes)
        self.trim()

    def clear(self) -> None:
        """Keep nothing of what is held."""
        self._forget_all()
        self._overwritten.clear()

    def trim(self) -> None:
        """Let the oldest spans go until the rest is within the bound."""
        if self._overwritten.num_bytes > _OVERWRITTEN_SHARE * self._max_bytes:
            self._overwritten.clear()
        while self._spans and self.num_bytes > self._max_bytes:
            self._forget(next(iter(self._spans)))

    def keep_overwritten(self, slots: Slots, debt: Floats) -> None:
        """Copy rows that are about to be computed again.

        Args:
            slots: (n,) the rows.
            debt: (n,) theirs.
        """
        is_other = ~self.exactness.is_of_this_text(slots)
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
        most_rows = self._max_bytes // cache.copied_row_bytes
        stretches = [(start, end) for start, end in stretches if end - start <= most_rows]
        if not stretches:
            return
        try:
            some = (slots[start:end] for start, end in stretches)
            copies = cache.copied(*some, take=self._slabs.take)
        except Exception as error:
            if memory_error(error) is None:
                raise
            self._forget_all()  # they are a luxury, and there is no room for it
            return
        for (start, end), rows in zip(stretches, copies, strict=True):
            of_span = slots[start:end]
            token_ids = cache.token_ids[of_span]
            segment = int(segments[start])
            key = segment, token_ids.tobytes()
            self._forget(key)  # the newer rows saw what is there now
            self._spans[key] = _Span(
                segment,
                token_ids,
                run_hashes(token_ids),
                cache.record("seen")[of_span],
                cache.record("standing")[of_span],
                debt[start:end].copy(),
                rows,
            )
            memory = rows.untyped_storage()
            self._span_bytes += 0 if self._held[memory.data_ptr()] else memory.nbytes()
            self._held[memory.data_ptr()] += 1

    def _forget(self, key: _Key) -> None:
        """Let a span go, if there is such a one."""
        if (span := self._spans.pop(key, None)) is None:
            return
        memory = span.rows.untyped_storage()
        self._held[memory.data_ptr()] -= 1
        if not self._held[memory.data_ptr()]:
            del self._held[memory.data_ptr()]
            self._span_bytes -= memory.nbytes()

    def _forget_all(self) -> None:
        self._spans.clear()
        self._held.clear()
        self._span_bytes = 0

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
        num_missing = len(wanted) - sum(run.length for run in runs)
        # With little missing, spans hold better rows only of a text that was here before.
        is_sought = num_missing >= SHORTEST_RUN or self.exactness.was_settled()
        spans = [*reversed(self._spans.values())] if is_sought else []
        holding = self._holding(spans, wanted)
        kept, places = self._overwritten.found(wanted)
        if not holding and not len(kept):
            return runs, []
        seen = self._cache.record("seen")
        is_left = np.arange(len(wanted)) >= changed_from
        for source, at, length in runs:
            part = slice(at, at + length)
            is_left[part] &= seen[order[source : source + length]] != wanted[part]
        found = [*self._own(holding, is_left, wanted, segment_of)]
        is_wanted = is_left[places]
        found += self._overwritten.returning(kept[is_wanted], places[is_wanted])
        is_found = np.zeros(len(wanted), dtype=bool)
        for piece in found:
            is_found[piece.positions] = True
        return without(runs, true_spans(is_found)), found

    def _holding(self, spans: list[_Span], wanted: Ints) -> list[_Span]:
        """Return those of the spans that hold rows computed over a text, by its histories."""
        if not spans:
            return []
        rows, _ = found_at(np.concatenate([span.seen for span in spans]), wanted)
        if not len(rows):
            return []
        ends = np.cumsum([len(span.seen) for span in spans])
        return [spans[number] for number in np.unique(np.searchsorted(ends, rows, "right"))]

    def _own(
        self, spans: list[_Span], is_left: NDArray[np.bool_], wanted: Ints, segment_of: Ints
    ) -> Iterator[Returning]:
        """Yield the rows of spans that were computed over this text, for places that are left.

        Those are left no more.
        """
        for span in spans:
            fits, at = found_at(span.seen, wanted)
            at, first = np.unique(at, return_index=True)  # what was pasted twice is twice
            is_right = is_left[at] & (segment_of[at] == span.segment)
            fits, at = fits[first][is_right], at[is_right]
            # What was seen at one place was seen there alone: spans and places go in step.
            for start, end in _stretches(fits, at - fits):
                part = slice(int(fits[start]), int(fits[end - 1]) + 1)
                yield _part(span, part, int(at[start]))
                is_left[at[start:end]] = False

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
        spans = self._with_common_run(token_ids[missing])
        for start, end in _stretches(missing, segment_of[missing]) if spans else ():
            at = int(missing[start])
            segment = int(segment_of[at])
            of_segment = [span for span in spans if span.segment == segment]
            pieces = _filling(of_segment, token_ids[at : at + end - start], at)
            found.setdefault(segment, []).extend(pieces)
        returning = []
        for segment, pieces in found.items():
            num_missing = np.count_nonzero(segment_of[missing] == segment)
            num_wanted = np.count_nonzero(segment_of[: len(token_ids)] == segment)
            num_found = sum(len(piece.positions) for piece in pieces)
            if 2 * (num_missing - num_found) <= num_wanted:
                returning += pieces
        return returning

    def _with_common_run(self, wanted: Ints) -> list[_Span]:
        """Return the spans that may share a run with wanted tokens, the newest first."""
        asked = run_hashes(wanted)
        if not self._spans or not len(asked):
            return []
        spans = [*reversed(self._spans.values())]
        hashes = [span.hashes for span in spans]
        # By half of their bits and then by the other: nothing is sorted.
        both = np.concatenate(hashes)
        at = np.flatnonzero(_is_among(both, asked, 0))
        at = at[_is_among(both[at], asked, 16)]
        if not len(at):
            return []
        owners = np.searchsorted(np.cumsum([*map(len, hashes)]), at, "right")
        return [spans[number] for number in np.unique(owners)]


def _is_among(hashes: Hashes, asked: Hashes, shift: int) -> NDArray[np.bool_]:
    """Return which hashes have 16 bits, those from `shift` on, in common with one asked for."""
    is_asked = np.zeros(1 << 16, dtype=bool)
    is_asked[(asked >> np.uint32(shift)).astype(np.uint16)] = True
    return is_asked[(hashes >> np.uint32(shift)).astype(np.uint16)]


def _filling(spans: list[_Span], wanted: Ints, at: int) -> Iterator[Returning]:
    """Yield spans' rows, the first one's first, for a stretch of wanted tokens from `at` on."""
    gaps = [(0, len(wanted))]
    for span in spans:
        left = []
        for start, end in gaps:
            runs = common_runs(span.token_ids, wanted[start:end])
            runs = [run for run in runs if run.length >= SHORTEST_RUN]
            for source, to, length in runs:
                part = slice(source, source + length)
                yield _part(span, part, at + start + to)
            left += [(start + low, start + high) for low, high in _gaps(runs, end - start)]
        gaps = left


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
