"""A text in pieces, for edits that cost what they touch; and where the parts of a text begin.

A `str` is copied as a whole by each edit. An undo of three thousand lines is one message of three
thousand edits: in pieces they cost about one pass over the text together, in whatever order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

# An edit copies a piece or two, and moves what is known of the others: of 800 kB, 200 pieces.
PIECE_CHARS = 4096


class Starts:
    """The ascending offsets at which parts of a text begin: its lines, for instance.

    An edit moves all that are behind it, as one number. Typing goes on where it was: those behind
    the last edit are held as they were before it, with what has been added since; only what lies
    between two edits is touched.
    """

    def __init__(self, starts: Iterable[int]) -> None:
        """Hold offsets, in order."""
        self._starts = [*starts]
        self._moved_from, self._moved_by = len(self._starts), 0

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._starts)

    def __getitem__(self, part: int) -> int:
        """Return where a part begins, 0-based and in range."""
        return self._starts[part] + (self._moved_by if part >= self._moved_from else 0)

    def part_of(self, offset: int) -> int:
        """Return the last part that begins at `offset` or before it; -1 if none does."""
        moved_from = self._moved_from
        if moved_from == len(self._starts) or offset < self[moved_from]:
            return bisect_right(self._starts, offset, 0, moved_from) - 1
        return bisect_right(self._starts, offset - self._moved_by, moved_from) - 1

    def replace(self, first: int, last: int, starts: Iterable[int], moved_by: int) -> None:
        """Put `starts` in the place of the parts `first` to `last`; those from `last` on move.

        Args:
            first: a part.
            last: that or one behind it, or their number; itself not replaced.
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


class Pieces:
    """A text that is read and edited by parts; `str` and `len` are those of the whole."""

    def __init__(self, text: str) -> None:
        """Cut a text."""
        self._pieces = _cut(text)
        self._starts = Starts(range(0, max(1, len(text)), PIECE_CHARS))
        self._num_chars = len(text)

    def __len__(self) -> int:
        """Return the number of characters."""
        return self._num_chars

    def __str__(self) -> str:
        """Return the whole text."""
        return "".join(self._pieces)

    def __getitem__(self, offset: int) -> str:
        """Return one character; `offset` must lie in the text."""
        piece = self._starts.part_of(offset)
        return self._pieces[piece][offset - self._starts[piece]]

    def part(self, start: int, end: int) -> str:
        """Return what stands from `start` to `end`, as far as that lies in the text."""
        start, end = max(0, start), min(end, self._num_chars)
        if start >= end:
            return ""
        first = self._starts.part_of(start)
        base, piece = self._starts[first], self._pieces[first]
        if end - base <= len(piece):
            return piece[start - base : end - base]
        last = self._starts.part_of(end - 1)
        between = self._pieces[first + 1 : last]
        return "".join(
            [piece[start - base :], *between, self._pieces[last][: end - self._starts[last]]]
        )

    def replace(self, start: int, end: int, text: str) -> None:
        """Put `text` in the place of what stands from `start` to `end`, which lie in the text."""
        first, last = self._starts.part_of(start), self._starts.part_of(end)
        base = self._starts[first]
        head = self._pieces[first][: start - base]
        new = head + text + self._pieces[last][end - self._starts[last] :]
        cut = [new] if len(new) <= 2 * PIECE_CHARS else _cut(new)
        self._pieces[first : last + 1] = cut
        starts = range(base + PIECE_CHARS, base + PIECE_CHARS * len(cut), PIECE_CHARS)
        moved_by = len(text) - (end - start)
        self._starts.replace(first + 1, last + 1, starts, moved_by)
        self._num_chars += moved_by


def _cut(text: str) -> list[str]:
    return [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)] or [""]
