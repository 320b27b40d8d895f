"""Changes between two versions of a text, as hunks in code points of the older one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Hunk:
    """One change: [start, end) becomes `text`; in code points of the text as it is."""

    start: int
    end: int
    text: str

    @property
    def growth(self) -> int:
        """How much longer the text becomes, in code points."""
        return len(self.text) - (self.end - self.start)


def changes(old: str, new: str) -> tuple[list[Hunk], list[tuple[int, int]]]:
    """Return the changed places and the unchanged stretches, in code points of `old`."""
    a, b = old.splitlines(keepends=True), new.splitlines(keepends=True)
    at = [0]
    for line in a:
        at.append(at[-1] + len(line))
    hunks, equal = [], []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            equal.append((at[i1], at[i2]))
        else:
            hunks.append(narrow(old, Hunk(at[i1], at[i2], "".join(b[j1:j2]))))
    return hunks, equal


def narrow(old: str, hunk: Hunk) -> Hunk:
    """Leave out what both sides of a change begin and end with, as an editor does."""
    start, end, text = hunk.start, hunk.end, hunk.text
    while start < end and text and old[start] == text[0]:
        start, text = start + 1, text[1:]
    while start < end and text and old[end - 1] == text[-1]:
        end, text = end - 1, text[:-1]
    return Hunk(start, end, text)


def applied(text: str, hunks: Iterable[Hunk]) -> str:
    """Return `text` after `hunks`, all in offsets before any of them."""
    for hunk in sorted(hunks, key=lambda hunk: (hunk.start, hunk.end), reverse=True):
        text = text[: hunk.start] + hunk.text + text[hunk.end :]
    return text


def undone(text: str, hunks: Iterable[Hunk]) -> tuple[str, list[Hunk]]:
    """Apply `hunks`; return the text then, and the hunks that lead back from it."""
    back, grown = [], 0
    ordered = sorted(hunks, key=lambda hunk: (hunk.start, hunk.end))
    for hunk in ordered:
        start = hunk.start + grown
        back.append(Hunk(start, start + len(hunk.text), text[hunk.start : hunk.end]))
        grown += hunk.growth
    return applied(text, ordered), back
