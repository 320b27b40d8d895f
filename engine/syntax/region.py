"""The part of a text around a place that is parsed, so that the cost does not grow with the text.

It begins and ends at lines that stand as far left as there are any near by: whole statements. Line
ends become line feeds.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

# On either side of the place: at least so many characters, and at most.
_LEAST, _MOST = 4_000, 12_000
# The beginning of a line that nothing above may need: no closer, no `else`.
_LINE = re.compile(
    r"(?:(?<=\n)|(?<=\r)(?!\n))([ \t]*)"
    r"(?![ \t\r\n#)\]}]|(?:else|elif|except|finally|catch|case)\b)"
)
# What hardly begins a line of a docstring or a template.
_STATEMENT = re.compile(
    r"(?:async |export |default |public |private |static |abstract )*"
    r"(?:def|class|function\*?|const|let|var|interface|enum|type|import|from) ?[\w{*]|@\w"
)


class Region(NamedTuple):
    """A part of a text.

    Attributes:
        text: with a line feed for every line end.
        start: where it begins in the whole text.
        is_whole: whether it is the whole text.
    """

    text: str
    start: int
    is_whole: bool


def unified(text: str) -> str:
    """Return `text` with a line feed for every line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def around(text: str, start: int, end: int) -> tuple[Region, int, int]:
    """Return the region around `text[start:end]`, and where that lies in it.

    Args:
        text: the whole text.
        start: code points.
        end: code points; not much behind `start`.
    """
    first, last = max(0, start - _MOST), min(len(text), end + _MOST)
    if first > 0:
        found = _lines(text, first + 1, start - _LEAST)
        # The one furthest left, sure to be a statement if there is such, and the nearest of those.
        first = min(reversed(found), key=_rank).start() if found else first
    if last < len(text):
        found = _lines(text, end + _LEAST, last)
        last = min(found, key=_rank).start() if found else last
    before, inside = unified(text[first:start]), unified(text[start:end])
    shown = before + inside + unified(text[end:last])
    region = Region(shown, first, last - first == len(text))
    return region, len(before), len(before) + len(inside)


def _lines(text: str, start: int, end: int) -> list[re.Match[str]]:
    """Return the lines that begin in `text[start:end]` and that a region may begin or end with."""
    # Where the search ends, a line would look empty.
    found = _LINE.finditer(text, start, end + _MOST)
    return list(itertools.takewhile(lambda match: match.start() < end, found))


def _rank(match: re.Match[str]) -> tuple[int, bool]:
    is_statement = _STATEMENT.match(match.string, match.end()) is not None
    return len(match.group(1).expandtabs(8)), not is_statement
