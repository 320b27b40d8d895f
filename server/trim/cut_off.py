"""A completion that the model had not ended: only what is whole is offered."""

from __future__ import annotations

import re

LENGTH, TIME = "length", "time"
CUT_OFF = (LENGTH, TIME)
# The model was no longer sure: what there is is offered, though its last line may go on.
DOUBT = "doubt"

_LAST_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])\s*\Z")


def without_last_token(text: str) -> str:
    """Drop the last word, or the last character that is in none, and the white space around it."""
    return _LAST_TOKEN.sub("", text)


def drop_partial_line(lines: list[str], stop_reason: str) -> list[str]:
    """Drop the last line, which was cut in the middle.

    A single line that reached `max_tokens` stays, up to its last whole item if it has several; one
    that reached the time limit does not: it would have been longer on a quieter machine.
    """
    if any(line.strip() for line in lines[:-1]):
        return lines[:-1]
    if stop_reason == TIME:
        return []
    line = lines[-1]
    return [*lines[:-1], line[: line.rfind(", ")] if ", " in line else line]


def drop_comments_at_end(text: str) -> str:
    """Drop comments and blank lines below the first line: what they speak of was cut off."""
    lines = text.split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith(("#", "//"))):
        lines.pop()
    return "\n".join(lines)
