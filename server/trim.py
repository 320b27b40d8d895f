"""Cut a raw completion to what should be inserted. Pure functions of text.

Every rule is conservative: it cuts only what would certainly be wrong in the file, because a good
suggestion cut short is a worse complaint than a bad one shown.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WINDOW = 4000  # characters looked at on either side of the cursor
_LINE_END = re.compile(r"\r\n|\n|\r")
_WORD = re.compile(r"\w")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_QUOTES = "\"'`"
_MAX_PERIOD_LINES = 4
_MAX_CLOSERS = 20


class Trimmed(NamedTuple):
    """What is left of a completion, and if that is nothing, why."""

    text: str
    reason: str | None


def trim(raw: str, text: str, start: int, end: int, stop_reason: str) -> Trimmed:
    """Cut `raw`, which is to replace `text[start:end]`.

    Args:
        raw: what the model wrote at `start`.
        text: the document.
        start: where `raw` is inserted, in code points; usually the cursor.
        end: where the text after it begins; usually the cursor too.
        stop_reason: why the model stopped: "end", "stop", "length" or "time".

    Returns:
        The text to insert; when it is empty, with the reason in words.
    """
    prefix = text[max(0, start - _WINDOW) : start]
    suffix = text[end : end + _WINDOW]
    if not raw.strip():
        return Trimmed("", "the model proposed nothing")
    lines = _LINE_END.split(raw)
    if stop_reason in ("length", "time"):
        lines = _drop_partial_line(lines)
    lines = _drop_repeats_within(lines)
    if _repeats_above(lines, prefix):
        return Trimmed("", "the completion repeated the lines above")
    lines = _drop_lines_below(lines, prefix, suffix)
    if not lines:
        return Trimmed("", "the completion repeated the lines below")
    kept = "\n".join(lines)
    kept = _drop_taken_closers(kept, prefix, suffix)
    kept = _drop_rest_of_line(kept, prefix, suffix)
    if not first_line(suffix).strip():
        kept = kept.rstrip()
    if not kept.strip():
        return Trimmed("", "the text after the cursor already has what the model proposed")
    return Trimmed(kept.replace("\n", _line_end(prefix, suffix)), None)


def first_line(text: str) -> str:
    """Return `text` up to its first line end."""
    return _LINE_END.split(text, maxsplit=1)[0]


def last_line(text: str) -> str:
    """Return `text` after its last line end."""
    return text[max(text.rfind("\n"), text.rfind("\r")) + 1 :]


def _line_end(prefix: str, suffix: str) -> str:
    """Return the line end in use around the cursor."""
    match = _LINE_END.search(suffix) or _LINE_END.search(prefix)
    return match.group() if match else "\n"


def _drop_partial_line(lines: list[str]) -> list[str]:
    """Drop the last line, cut in the middle, unless it is the only one with something on it."""
    return lines[:-1] if any(line.strip() for line in lines[:-1]) else lines


def _drop_repeats_within(lines: list[str]) -> list[str]:
    """Keep the first of a block of lines that comes three times in a row."""
    for start in range(len(lines)):
        for period in range(1, _MAX_PERIOD_LINES + 1):
            block = lines[start : start + period]
            again = lines[start + period : start + 3 * period]
            if again == block * 2 and _says_something(block):
                return lines[: start + period]
    return lines


def _repeats_above(lines: list[str], prefix: str) -> bool:
    """Whether the completion's first two lines, or its only one, stand right above already.

    One line may follow its own likeness once (`next(rows)` twice); not a third time.
    """
    above = [line.rstrip() for line in _LINE_END.split(prefix)]
    proposed = [above.pop() + lines[0], *lines[1:]]
    proposed = [line.rstrip() for line in proposed if line.strip()]
    above = [line for line in above if line]
    if not proposed or not _says_something(proposed[:1]):
        return False
    if len(proposed) == 1 and above[-2:] == proposed * 2:
        return True
    return len(proposed) > 1 and above[-2:] == proposed[:2]


def _drop_lines_below(lines: list[str], prefix: str, suffix: str) -> list[str]:
    """Drop the completion's last lines when they are the next lines of the file, in order."""
    below = [line.rstrip() for line in _LINE_END.split(suffix)[1:]]
    below = [line for line in below if line]
    if first_line(suffix).strip() or not below:
        return lines
    whole = [last_line(prefix) + lines[0], *lines[1:]]
    for start in range(len(whole)):
        tail = [line.rstrip() for line in whole[start:] if line.strip()]
        if tail and tail == below[: len(tail)] and _says_something(tail):
            return lines[:start]
    return lines


def _says_something(lines: list[str]) -> bool:
    return any(_WORD.search(line) for line in lines)


def _drop_taken_closers(kept: str, prefix: str, suffix: str) -> str:
    """Drop a closing bracket, and what follows it, that the suffix has for the same opener.

    Told by what happens to the suffix: a closer there that had its opener, and has lost it.
    """
    opened = _scan(prefix, [])[0]
    if opened is None or (paired := _num_paired(suffix, opened)) == 0:
        return kept
    cut = kept
    for _ in range(_MAX_CLOSERS):
        after, closers = _scan(cut, opened)
        if after is not None and _num_paired(suffix, after) >= paired:
            return cut
        if not closers:
            break
        cut = cut[: closers[-1]]
    return kept


def _scan(text: str, opened: list[str]) -> tuple[list[str] | None, list[int]]:
    """Follow brackets through `text`.

    Returns:
        The brackets open at its end, and where in `text` those open at its start were closed. A
        closer without any opener is passed over; one of the wrong kind gives None.
    """
    stack = list(opened)
    floor = len(stack)
    closers: list[int] = []
    for index, char in enumerate(text):
        if char in "([{":
            stack.append(char)
        elif char in _PAIRS and stack:
            if stack[-1] != _PAIRS[char]:
                return None, closers
            stack.pop()
            if len(stack) < floor:
                floor = len(stack)
                closers.append(index)
    return stack, closers


def _num_paired(suffix: str, opened: list[str]) -> int:
    """Return how many of `opened`, innermost first, find their closer in `suffix`."""
    stack: list[str] = list(opened)
    floor = len(stack)
    for char in suffix:
        if char in "([{":
            stack.append(char)
        elif char in _PAIRS:
            if not stack or stack[-1] != _PAIRS[char]:
                break
            stack.pop()
            floor = min(floor, len(stack))
    return len(opened) - floor


def _drop_rest_of_line(kept: str, prefix: str, suffix: str) -> str:
    """Drop the completion's end when it is the rest of the line, which is there already."""
    rest = first_line(suffix).rstrip()
    line = last_line(kept)
    if not rest.strip() or not line:
        return kept
    if rest[0] in _QUOTES and _closes_quote(last_line(prefix), line, rest[0]):
        return kept[: kept.rindex(rest[0])]
    rest = rest.lstrip()
    line = line.rstrip()
    if not line.endswith(rest):
        return kept
    before = line[: len(line) - len(rest)]
    starts_inside_word = bool(_WORD.match(rest)) and bool(_WORD.match(before[-1:]))
    if starts_inside_word or any(char in _PAIRS for char in rest):
        return kept
    return kept[: kept.rindex(rest)]


def _closes_quote(before: str, line: str, quote: str) -> bool:
    """Whether the cursor is inside a string that `line` ends by closing."""
    return before.count(quote) % 2 == 1 and line.endswith(quote) and line.count(quote) % 2 == 1
