"""Sets of whole numbers kept as sorted, disjoint, half-open intervals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """A set of whole numbers; memory and time depend on its intervals, not on its size."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        """Start with the union of `intervals`, each (start, end)."""
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in intervals:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the intervals in order."""
        return zip(self.starts, self.ends, strict=True)

    def __contains__(self, number: int) -> bool:
        """Return whether one of the intervals covers `number`."""
        index = bisect_right(self.starts, number) - 1
        return index >= 0 and number < self.ends[index]

    def __len__(self) -> int:
        """Return how many numbers the set has."""
        return sum(end - start for start, end in self)

    def __eq__(self, other: object) -> bool:
        """Return whether both sets have the same numbers."""
        return

    def add(self, start: int, end: int) -> None:
        """Add the numbers from `start` up to, but not including, `end`."""
        if start >= end:
            return
        low = bisect_right(self.ends, start - 1)
        high = bisect_right(self.starts, end)
        if low < high:
            start = min(start, self.starts[low])
            end = max(end, self.ends[high - 1])
        self.starts[low:high] = [start]
        self.ends[low:high] = [end]
