"""Comments: one behind code on its line, and one of which there is nothing but the mark."""

from __future__ import annotations

import re

from .lines import Sides, first_line

_MARKS = ("#", "//", "/*", "*")
_BARE_MARK = re.compile(r"(?:\A|\s)(?:#|//|/\*\*?)\s*\Z")


def drop_after_comment(kept: str, around: Sides) -> str:
    """Keep the first line of what goes on a comment behind code: it says what that code does.

    One that has a line of its own may well be about the code that the completion writes below it.
    """
    return kept if around.before.lstrip().startswith(_MARKS) else first_line(kept)


def drop_bare_mark(kept: str) -> str:
    """Drop the mark of a comment at the end: what it was to say is not there."""
    return _BARE_MARK.sub("", kept)
