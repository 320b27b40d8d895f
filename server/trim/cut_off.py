"""A completion that the model had not ended: only what is whole is offered."""

from __future__ import annotations

import re

from .brackets import leaves_string_open

LENGTH, TIME = "length", "time"
CUT_OFF = (LENGTH, TIME)
# The model was no longer sure: its last line was to go on, and is offered as far as it is whole.
DOUBT = "doubt"

# What asks for more behind it, also where a grammar takes it for a name or a statement; but for a
# member that is called so.
_WORDS = (
    r"(?<![.\w$@#-])(?:return|raise|yield|throw|await|async|new|typeof|delete|const|let|var|def|class|"
    r"import|from|export|in|is|not|and|or|if|elif|for|while|with|as|lambda|del|assert)"
)
# Such that may be names are looked at only where they stand alone.
_ALONE = r"^[ \t]*(?:match|type|case|static|declare|abstract|namespace|public|private|protected)"
_WAITS = re.compile(rf"(?:{_WORDS}|{_ALONE})\Z", re.MULTILINE)
# The same of characters: where no grammar tells. Neither `i++` nor `a >` of a tag waits.
_OPERATOR = re.compile(r"(?:[\w)\]\"'`}]\.|,|=|->|::|&&|\|\||(?<!\+)\+|(?<!-)-|\\)\Z")
_LAST_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])\s*\Z")


def without_last_token(text: str) -> str:
    """Drop the last word, or the last character that is in none, and the white space around it."""
    return _LAST_TOKEN.sub("", text)


def waits_for_more(text: str, is_read: bool) -> bool:
    """Whether a text ends with what a statement does not end with.

    Args:
        text: without white space at its end.
        is_read: a grammar reads the text with it, and so has seen operators and strings.
    """
    if _WAITS.search(text):
        return True
    line = text[text.rfind("\n") + 1 :]
    return not is_read and bool(_OPERATOR.search(line) or leaves_string_open(line))


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
