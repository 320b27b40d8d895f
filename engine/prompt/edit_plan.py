"""Which resident rows serve the wanted tokens: keep, move or recompute.

keep: same token, same position. move: same token at another position (its key is turned).
recompute: no resident row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]
Key = TypeVar("Key", bound=Hashable)

# Between the first and the last difference rows are matched where both sequences share a run of
# this many tokens that is unique in each, and a run must have this many to be moved at all. After
# a jump of the cursor two stretches of code have shorter runs in common by chance ("return self."):
# those rows saw another text, and to recompute a few costs little.
SHORTEST_RUN = 16
# Of the hash: odd, and otherwise of no meaning.
_FACTORS = tuple(map(np.uint32, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)))
# Of so many tokens a sample of runs is tried first: those with hashes below this, one in 64.
_MANY, _SAMPLED_BELOW = 2048, np.uint32(1 << 26)

_NO_ROWS: Ints = np.empty(0, dtype=np.int64)


class Run(NamedTuple):
    """Resident rows that serve wanted tokens, one after another.

    Attributes:
        source: the first resident row, counted in order of position.
        at: the first wanted token.
        length: of both.
    """

    source: int
    at: int
    length: int


def match_rows(resident: Mapping[Key, Ints], wanted: Mapping[Key, Ints]) -> list[Run]:
    """Find the resident rows that serve wanted tokens.

    Rows only match within one segment of the layout (say the suffix): text that crosses the cursor
    changes its meaning and is never turned.

    Args:
        resident: tokens of the cache's rows in order of position, by segment.
        wanted: tokens of the layout, likewise; a segment may have come, gone or changed its place.

    Returns:
        Runs counted over all segments, in order of the wanted tokens and increasing in both within
        a segment; what no run serves is to be recomputed. Short runs, and all runs of a segment of
        which most is new, stay only where they are.

    Cost: linear in the tokens compared, which is the window and never the file. The stretch between
    the first and the last difference of a segment is hashed; what a sample of it leaves unmatched,
    as a rule little, is sorted.
    """
    starts = dict(zip(resident, accumulate(map(len, resident.values()), initial=0), strict=False))
    found: list[Run] = []
    new_start = 0
    for key, new in wanted.items():
        runs = common_runs(resident[key], new) if key in resident else []
        # Where most of a segment is new, its few old rows were computed for another place.
        moves = 2 * sum(run.length for run in runs) >= len(new)
        for run in runs:
            source, at = starts[key] + run.source, new_start + run.at
            if source == at or (moves and run.length >= SHORTEST_RUN):
                found.append(Run(source, at, run.length))
        new_start += len(new)
    return found


def moved_rows(runs: Sequence[Run], order: Ints, positions: Ints) -> tuple[Ints, Ints]:
    """Find the matched rows that are not in their place.

    Args:
        runs: as `match_rows` returns them.
        order: (r,) slots of the resident rows, in order of position.
        positions: (r,) position of each slot.

    Returns:
        The slots, (n,), and the position that each is to have, (n,).
    """
    slots, targets = [], []
    for source, at, length in runs:
        of_run = order[source : source + length]
        # Positions ascend: without a gap among them all are in their place, or none.
        first, last = positions[of_run[0]], positions[of_run[-1]]
        has_gap = last - first != length - 1
        if first == at and not has_gap:
            continue
        target = np.arange(at, at + length)
        is_moved = positions[of_run] != target if has_gap else slice(None)
        slots.append(of_run[is_moved])
        targets.append(target[is_moved])
    return _joined(slots), _joined(targets)


def rows_between(spans: Sequence[tuple[int, int]], end: int) -> Ints:
    """Return the numbers 0 .. end - 1 that ascending (start, length) spans leave out."""
    between, reached = [], 0
    for start, length in [*spans, (end, 0)]:
        if start > reached:
            between.append(np.arange(reached, start))
        reached = start + length
    return _joined(between)


def true_spans(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (start, length) of what is true without a gap, ascending."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    return [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def without(runs: Sequence[Run], spans: Sequence[tuple[int, int]]) -> list[Run]:
    """Return the runs less the wanted tokens in ascending (start, length) spans."""
    found = []
    for source, at, length in runs:
        reached, end = at, at + length
        for start, count in [*spans, (end, 0)]:
            if reached < min(start, end):
                found.append(Run(source + reached - at, reached, min(start, end) - reached))
            reached = max(reached, start + count)
    return found


def _joined(parts: list[Ints]) -> Ints:
    # One part, which is nearly all rows after most edits, is not copied.
    return parts[0] if len(parts) == 1 else np.concatenate([_NO_ROWS, *parts])


def common_runs(old: Ints, new: Ints) -> list[Run]:
    """Return the runs that agree, increasing in both."""
    head = common_prefix(old, new)
    tail = _common_suffix(old[head:], new[head:])
    old_end, new_end = len(old) - tail, len(new) - tail
    runs = [Run(0, 0, head)]
    for source, at, length in anchored_runs(old[head:old_end], new[head:new_end]):
        runs.append(Run(head + source, head + at, length))
    runs.append(Run(old_end, new_end, tail))
    return [run for run in runs if run.length]


def common_prefix(first: Ints, second: Ints) -> int:
    """Return how many tokens two sequences share at their start."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    at = int(differ.argmax()) if length else 0
    return at if length and differ[at] else length


def _common_suffix(first: Ints, second: Ints) -> int:
    """Return how many tokens two sequences share at their end."""
    length = min(len(first), len(second))
    differ = first[len(first) - length :] != second[len(second) - length :]
    # Bytes are searched from the end faster than arrays.
    return length - 1 - differ.tobytes().rfind(1)


def anchored_runs(old: Ints, new: Ints, sample_from: int = _MANY) -> list[Run]:
    """Return the runs that grow from anchors, in increasing order.

    Args:
        old: the one sequence.
        new: the other.
        sample_from: of so many tokens a sample of runs is tried first.
    """
    shortest = min(len(old), len(new))
    if shortest < SHORTEST_RUN:
        return []
    old_hashes, new_hashes = run_hashes(old), run_hashes(new)
    runs = [Run(len(old), len(new), 0)]
    if shortest >= sample_from:
        # What agrees between edits is long and found by a sample, the same of either sequence.
        old_at = np.flatnonzero(old_hashes < _SAMPLED_BELOW)
        new_at = np.flatnonzero(new_hashes < _SAMPLED_BELOW)
        pairs = _unique_in_gaps(old_hashes, new_hashes, old_at, new_at, runs)
        # Where blocks have moved, the longest sequence of a sample need not be the one with most
        # tokens.
        if not _crosses(pairs[1]):
            runs = _grown(old, new, runs, _chained(*pairs))
    # Then all that lie in the gaps are tried.
    reach = SHORTEST_RUN - 1
    old_spans = [(run.source - reach, run.length + reach) for run in runs[:-1]]
    new_spans = [(run.at - reach, run.length + reach) for run in runs[:-1]]
    old_at = rows_between(old_spans, len(old_hashes))
    new_at = rows_between(new_spans, len(new_hashes))
    pairs = _unique_in_gaps(old_hashes, new_hashes, old_at, new_at, runs)
    return _grown(old, new, runs, _chained(*pairs))[:-1]


def _grown(old: Ints, new: Ints, runs: list[Run], anchors: list[tuple[int, int]]) -> list[Run]:
    """Return runs together with those that grow from anchors before or between them.

    Args:
        old: the one sequence.
        new: the other.
        runs: in increasing order; the last one ends both sequences.
        anchors: in increasing order, each in one gap.
    """
    found: list[Run] = []
    old_at = new_at = number = 0  # the end of the last one found; how many of `runs` are among them
    for old_anchor, new_anchor in anchors:
        while runs[number].source <= old_anchor:
            found.append(runs[number])
            old_at, new_at = _end(found[-1])
            number += 1
        if old_anchor < old_at or new_anchor < new_at:
            continue  # inside the run that an earlier anchor grew into
        old_end, new_end, _ = runs[number]
        back = _common_suffix(old[old_at:old_anchor], new[new_at:new_anchor])
        length = back + common_prefix(old[old_anchor:old_end], new[new_anchor:new_end])
        found.append(Run(old_anchor - back, new_anchor - back, length))
        old_at, new_at = _end(found[-1])
    return found + runs[number:]


def _end(run: Run) -> tuple[int, int]:
    return run.source + run.length, run.at + run.length


def _unique_in_gaps(
    old_hashes: Hashes, new_hashes: Hashes, old_at: Ints, new_at: Ints, runs: list[Run]
) -> tuple[Ints, Ints]:
    """Return the pairs of places where runs unique in both sequences agree, in order of the first.

    Args:
        old_hashes: the hash of each run in a sequence.
        new_hashes: likewise.
        old_at: the places of those to be tried, ascending.
        new_at: likewise.
        runs: what is already found; a pair lies in one gap before or between them.
    """
    if not len(old_at) or not len(new_at):
        return _NO_ROWS, _NO_ROWS
    old_pair, new_pair = _unique_pairs(old_hashes[old_at], new_hashes[new_at])
    old_at, new_at = old_at[old_pair], new_at[new_pair]
    if len(runs) > 1:
        sources, ats, _ = np.transpose(runs)
        in_one_gap = np.searchsorted(sources, old_at) == np.searchsorted(ats, new_at)
        old_at, new_at = old_at[in_one_gap], new_at[in_one_gap]
    return old_at, new_at


def _crosses(new_at: Ints) -> bool:
    """Return whether places, in the order of their partners, are not in order themselves."""
    return bool((new_at[1:] < new_at[:-1]).any())


def _chained(old_at: Ints, new_at: Ints) -> list[tuple[int, int]]:
    """Return the anchors among pairs of places, increasing in both.

    Patience diff: the longest increasing sequence is kept. Of runs that follow one another in both
    sequences the first and the last may stand for all.
    """
    if _crosses(new_at):
        return _longest_increasing(list(zip(old_at.tolist(), new_at.tolist(), strict=True)))
    old_steps, new_steps = old_at[1:] - old_at[:-1], new_at[1:] - new_at[:-1]
    is_break = np.ones(len(old_at) + 1, dtype=bool)
    np.not_equal(old_steps | new_steps, 1, out=is_break[1:-1])  # not 1 in both
    is_end = is_break[:-1] | is_break[1:]
    return list(zip(old_at[is_end].tolist(), new_at[is_end].tolist(), strict=True))


def run_hashes(ids: Ints) -> Hashes:
    """Return a hash of each run of `SHORTEST_RUN` tokens, a power of two.

    Two runs hashed alike cost an anchor; they are never taken for the same, for what an anchor
    grows into is compared token by token.
    """
    # 32 bits: processors multiply eight of these at once, and they are sorted in two passes.
    hashes, length = ids.astype(np.uint32), 1
    for factor in _FACTORS:
        hashes = hashes[:-length] * factor + hashes[length:]
        length *= 2
    return hashes


def _unique_pairs(old: Hashes, new: Hashes) -> tuple[Ints, Ints]:
    """Return the places of values that occur once in either sequence, in order of the first."""
    both = np.concatenate([old, new])
    place = stable_order(both)
    value = both[place]
    is_new_value = np.ones(len(both) + 1, dtype=bool)
    np.not_equal(value[1:], value[:-1], out=is_new_value[1:-1])
    # A value that is there twice, once in each sequence: the old place was sorted before the new.
    pairs = np.flatnonzero(is_new_value[:-2] & ~is_new_value[1:-1] & is_new_value[2:])
    first, second = place[pairs], place[pairs + 1]
    is_shared = (first < len(old)) & (second >= len(old))
    partner = np.full(len(old), -1)
    partner[first[is_shared]] = second[is_shared] - len(old)
    old_at = np.flatnonzero(partner >= 0)
    return old_at, partner[old_at]


def stable_order(values: Hashes) -> Ints:
    """Return the places of values in ascending order, equal ones as they stand.

    NumPy sorts 16 bits by counting, five times faster than it compares 32: first by the low half,
    then, keeping that order among equals, by the high half.
    """
    order = np.argsort(values.astype(np.uint16), kind="stable")
    high = (values >> np.uint32(16)).astype(np.uint16)
    return order[np.argsort(high[order], kind="stable")]


def _longest_increasing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest subsequence of pairs, sorted by first, whose seconds increase."""
    ends: list[int] = []
    last: list[int] = []
    before = [-1] * len(pairs)
    for index, (_, value) in enumerate(pairs):
        place = bisect_left(ends, value)
        before[index] = last[place - 1] if place else -1
        ends[place : place + 1] = [value]
        last[place : place + 1] = [index]
    chain = []
    index = last[-1] if last else -1
    while index >= 0:
        chain.append(pairs[index])
        index = before[index]
    return chain[::-1]
