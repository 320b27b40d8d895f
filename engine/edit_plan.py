"""Which resident rows serve the wanted tokens: keep, move or recompute.

keep: same token, same position. move: same token at another position (its key is turned).
recompute: no resident row.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Between the first and the last difference rows are matched where both sequences share a run of
# this many tokens that is unique in each, and a run must have this many to be moved at all. After
# a jump of the cursor two stretches of code have shorter runs in common by chance ("return self."):
# those rows saw another text, and to recompute a few costs little.
_SHORTEST_RUN = 16
# Of the hash: odd, and otherwise of no meaning.
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


def match_rows(
    resident_ids: Ints, resident_sides: Ints, wanted_ids: Ints, wanted_sides: Ints
) -> Ints:
    """Find the resident row for each wanted token.

    Both sequences are in order of position. Rows only match within one side (a part of the layout,
    say the suffix): text that crosses the cursor changes its meaning and is never turned.

    Args:
        resident_ids: (r,) tokens of the cache's rows.
        resident_sides: (r,) the side each belongs to, ascending.
        wanted_ids: (w,) tokens of the layout.
        wanted_sides: (w,) their sides, ascending.

    Returns:
        (w,) index of the resident row, or -1 to recompute; increasing where not -1. Short runs,
        and all runs of a side of which most is new, stay only where they are.

    Cost: linear in the tokens compared, which is the window and never the file; the stretch between
    the first and the last difference of a side costs a sort more.
    """
    source = np.full(len(wanted_ids), -1, dtype=np.int64)
    for side in wanted_sides[np.diff(wanted_sides, prepend=-1) != 0]:  # each once, they ascend
        old_start, old_end = np.searchsorted(resident_sides, [side, side + 1])
        new_start, new_end = np.searchsorted(wanted_sides, [side, side + 1])
        old, new = resident_ids[old_start:old_end], wanted_ids[new_start:new_end]
        runs = _common_runs(old, new)
        # Where most of a side is new, its few old rows were computed for another place.
        moves = 2 * sum(length for _, _, length in runs) >= len(new)
        for old_at, new_at, length in runs:
            start, at = old_start + old_at, new_start + new_at
            if start == at or (moves and length >= _SHORTEST_RUN):
                source[at : at + length] = np.arange(start, start + length)
    return source


def _common_runs(old: Ints, new: Ints) -> list[tuple[int, int, int]]:
    """Return runs (start in old, start in new, length) that agree, both starts increasing."""
    head = _common_prefix(old, new)
    tail = _common_prefix(old[head:][::-1], new[head:][::-1])
    runs = [(0, 0, head)]
    old_end, new_end = len(old) - tail, len(new) - tail
    old_at = new_at = head
    for old_anchor, new_anchor in _anchors(old[head:old_end], new[head:new_end]):
        old_anchor, new_anchor = old_anchor + head, new_anchor + head
        if old_anchor < old_at or new_anchor < new_at:
            continue  # inside the run that an earlier anchor grew into
        back = _common_prefix(old[old_at:old_anchor][::-1], new[new_at:new_anchor][::-1])
        length = back + _common_prefix(old[old_anchor:old_end], new[new_anchor:new_end])
        runs.append((old_anchor - back, new_anchor - back, length))
        old_at, new_at = old_anchor - back + length, new_anchor - back + length
    runs.append((old_end, new_end, tail))
    return [run for run in runs if run[2]]


def _common_prefix(first: Ints, second: Ints) -> int:
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    at = int(differ.argmax()) if length else 0
    return at if length and differ[at] else length


def _anchors(old: Ints, new: Ints) -> list[tuple[int, int]]:
    """Return pairs of places where runs unique in both sequences agree, in increasing order.

    Patience diff: the unique common runs, of which the longest increasing sequence is kept. Of runs
    that follow one another in both sequences the first and the last may stand for all.
    """
    size = _SHORTEST_RUN
    if len(old) < size or len(new) < size:
        return []
    old_at, new_at = _unique_pairs(_hashes(old), _hashes(new))
    if (np.diff(new_at) > 0).all():  # nothing crosses: all are in the sequence
        breaks = (np.diff(old_at) != 1) | (np.diff(new_at) != 1)
        is_end = np.concatenate([[True], breaks]) | np.concatenate([breaks, [True]])
        old_at, new_at = old_at[is_end[: len(old_at)]], new_at[is_end[: len(new_at)]]
    return _longest_increasing(list(zip(old_at.tolist(), new_at.tolist(), strict=True)))


def _hashes(ids: Ints) -> NDArray[np.uint64]:
    """Return a hash of each run of `_SHORTEST_RUN` tokens, a power of two.

    Two runs hashed alike cost an anchor; they are never taken for the same, for what an anchor
    grows into is compared token by token.
    """
    hashes, length = ids.astype(np.uint64), 1
    while length < _SHORTEST_RUN:
        # Odd factors lose nothing modulo 2^64; the shift lets high bits count among the low ones.
        hashes = hashes[:-length] * _FACTORS[0] + hashes[length:] * _FACTORS[1]
        hashes ^= hashes >> np.uint64(29)
        length *= 2
    return hashes


def _unique_pairs(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """Return the places of values that occur once in either sequence, in order of the first."""
    # Sorted together with their places in the low bits: to sort plain numbers is what is fast.
    num_bits = np.uint64(len(old) + len(new)).item().bit_length()
    both = np.concatenate([old, new]) >> np.uint64(num_bits) << np.uint64(num_bits)
    both |= np.arange(len(both), dtype=np.uint64)
    both.sort()
    value = both >> np.uint64(num_bits)
    place = (both & np.uint64((1 << num_bits) - 1)).astype(np.int64)
    is_new_value = np.concatenate([[True], value[1:] != value[:-1], [True]])
    # A value that is there twice, once in each sequence: the old place was sorted before the new.
    is_pair = is_new_value[:-2] & ~is_new_value[1:-1] & is_new_value[2:]
    first, second = place[:-1][is_pair], place[1:][is_pair]
    is_shared = (first < len(old)) & (second >= len(old))
    partner = np.full(len(old), -1)
    partner[first[is_shared]] = second[is_shared] - len(old)
    old_at = np.flatnonzero(partner >= 0)
    return old_at, partner[old_at]


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
