"""Where the lines of a text begin. An edit moves all that are behind it, as one number."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

_LINE_END = re.compile(r"\r\n|\n|\r")


class LineStarts:
    """The offsets at which the lines of a text begin; the first is 0.

    Typing goes on where it was: those behind the last edit are held as they were before it, with
    what has been added since; only what lies between two edits is touched.
    """

    def __init__(self, text: str = "") -> None:
        """Index a text."""
        self._starts = [0, *line_starts(text, 0)]
        self._moved_from, self._moved_by = len(self._starts), 0

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._starts)

    def __getitem__(self, line: int) -> int:
        """Return where a line begins, 0-based and in range."""
        return self._starts[line] + (self._moved_by if line >= self._moved_from else 0)

    def line_of(self, offset: int) -> int:
        """Return the last line that begins at `offset` or before it."""
        moved_from = self._moved_from
        if moved_from == len(self._starts) or offset < self[moved_from]:
            return bisect_right(self._starts, offset, 0, moved_from) - 1
        return bisect_right(self._starts, offset - self._moved_by, moved_from) - 1

    def replace(self, first: int, last: int, starts: Iterable[int], moved_by: int) -> None:
        """Put `starts` in the place of the lines `first` to `last`; those from `last` on move.

        Args:
            first: a line.
            last: a line behind it, or their number.
            starts: in the text as it is from now on.
            moved_by: characters.
        """
        held, by = self._starts, self._moved_by
        low, high = sorted((last, self._moved_from))
        by = by if last > self._moved_from else -by
        held[low:high] = [start + by for start in held[low:high]]
        num_before = len(held)
        held[first:last] = starts
        self._moved_from = last + len(held) - num_before
        self._moved_by += moved_by


def line_starts(text: str, base: int) -> list[int]:
    """Return the offset after every line end of `text`, counted from `base`."""
    return [base + match.end() for match in _LINE_END.finditer(text)]
