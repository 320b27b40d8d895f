"""What turns one text into another, as few small edits, and how much two texts have in common.

Clients of HTTP send whole texts, or what is around the cursor of one: between two requests
something was typed, and such a window slides by lines at its top and bottom. Both are found by
bisection and search, in C, because a real difference (difflib) takes seconds for a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ...engine.wire.texts import common_ends
from ..documents import Edit

# A window's first and last so many characters are looked for in the one before it: some lines, so
# that they are found once. Shorter ones say nothing.
_ANCHOR, _SHORTEST_ANCHOR = 200, 32


def edits_between(old: str, new: str) -> list[Edit]:
    """Return what turns `old` into `new`: at most one edit at each end and one between.

    Returns:
        Edits from the last to the first, each in the text after the one before it and so in offsets
        of `old`, too; none if the texts agree.
    """
    tops = {(0, 0), _slid(old, new)}
    bottoms = {(0, 0), _slid(old[::-1], new[::-1])}
    candidates = [_edits(old, new, top, bottom) for top, bottom in product(tops, bottoms)]
    return min(candidates, key=_size)


def applied(text: str, edits: Sequence[Edit]) -> str:
    """Return a text after edits, each in the text after the one before it."""
    for start, end, inserted in edits:
        text = text[:start] + inserted + text[end:]
    return text


@dataclass(frozen=True)
class Fingerprint:
    """A text, and the different lines that it has: its shingles."""

    text: str

    @cached_property
    def lines(self) -> frozenset[str]:
        """The text's different lines."""
        return frozenset(self.text.split("\n"))

    @cached_property
    def num_chars(self) -> int:
        """Characters of those lines, a line end each."""
        return _num_chars(self.lines)

    def num_shared(self, other: Fingerprint) -> int:
        """Return how many of `num_chars` two texts have in common.

        Lines of which some were typed since count by where the texts begin and end alike: of a text
        of a few lines there is little else.
        """
        shared = _num_chars(self.lines & other.lines)
        if 2 * shared >= self.num_chars:
            return shared
        around = sum(common_ends(self.text, other.text))
        return max(shared, min(around, self.num_chars, other.num_chars))


def _slid(old: str, new: str) -> tuple[int, int]:
    """Return how much at the top of `old` is gone in `new`, and how much at the top of `new` came.

    One of them is 0: a window that slides down loses lines there, one that slides up gains some.
    """
    length = min(_ANCHOR, len(old), len(new))
    if length < _SHORTEST_ANCHOR or old[:length] == new[:length]:
        return 0, 0
    if (at := old.find(new[:length])) > 0:
        return at, 0
    return 0, max(0, new.find(old[:length]))


def _edits(old: str, new: str, top: tuple[int, int], bottom: tuple[int, int]) -> list[Edit]:
    """Return the edits if so much of both texts goes and comes at top and bottom."""
    if top[0] + bottom[0] > len(old) or top[1] + bottom[1] > len(new):
        return [Edit(0, len(old), new)]
    old_end, new_end = len(old) - bottom[0], len(new) - bottom[1]
    here, there = old[top[0] : old_end], new[top[1] : new_end]
    start, tail = common_ends(here, there)
    found = [
        Edit(old_end, len(old), new[new_end:]),
        Edit(top[0] + start, old_end - tail, there[start : len(there) - tail]),
        Edit(0, top[0], new[: top[1]]),
    ]
    return [edit for edit in found if edit.start < edit.end or edit.text]


def _size(edits: Sequence[Edit]) -> int:
    return sum(end - start + len(text) for start, end, text in edits)


def _num_chars(lines: frozenset[str]) -> int:
    return sum(map(len, lines)) + len(lines)
