"""Lines of text on both sides of a cursor."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...engine.syntax.region import unified

_WINDOW = 4000  # characters looked at on either side of the cursor
_LINE_END = re.compile(r"\r\n|\n|\r")
WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Sides:
    """The text on both sides of the place, as far as the rules look, with line feeds.

    Attributes:
        prefix: before it.
        suffix: after it.
        line_end: of the lines around it: that of the place's own line, else of the one before.
    """

    prefix: str
    suffix: str
    line_end: str

    @property
    def before(self) -> str:
        """The place's line up to it."""
        return last_line(self.prefix)

    @property
    def rest(self) -> str:
        """The place's line from it on."""
        return first_line(self.suffix)


def sides(text: str, start: int, end: int) -> Sides:
    """Return what lies on both sides of `text[start:end]`."""
    prefix = text[max(0, start - _WINDOW) : start]
    suffix = text[end : end + _WINDOW]
    return Sides(unified(prefix), unified(suffix), _line_end(prefix, suffix))


def first_line(text: str) -> str:
    """Return `text` up to its first line end."""
    return _LINE_END.split(text, maxsplit=1)[0]


def last_line(text: str) -> str:
    """Return `text` after its last line end."""
    return text[max(text.rfind("\n"), text.rfind("\r")) + 1 :]


def says_something(lines: list[str]) -> bool:
    """Whether there is a letter or a digit in them."""
    return any(WORD.search(line) for line in lines)


def _line_end(prefix: str, suffix: str) -> str:
    if match := _LINE_END.search(suffix):
        return match.group()
    ends = _LINE_END.findall(prefix)
    return ends[-1] if ends else "\n"
