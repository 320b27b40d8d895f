"""A comment behind code, on the same line."""

from __future__ import annotations

from .lines import Sides, first_line

_MARKS = ("#", "//", "/*", "*")


def drop_after_comment(kept: str, around: Sides) -> str:
    """Keep the first line of what goes on a comment behind code: it says what that code does.

    One that has a line of its own may well be about the code that the completion writes below it.
    """
    return kept if around.before.lstrip().startswith(_MARKS) else first_line(kept)
