"""Repetition: of itself, of the lines above, of the lines below."""

from __future__ import annotations

import math
import re

from .lines import WORD, Sides, first_line, says_something

MAX_PERIOD_LINES = 4
_MIN_TELLING_CHARS = 4
_LAST_WORD = re.compile(r"\w+\Z")
_MAX_LINE_CHARS = 2000
_MAX_UNIT_CHARS = 40
_COMMON = re.compile(
    r"\s*(?:return|return None|return null|pass|break|continue|else|else:|try:|finally:|try \{|"
    r"\} else \{|\} finally \{|default:|do \{|end|return (?:True|False|true|false))[;,]?\s*\Z"
)


def loop_start(text: str, is_cut_off: bool) -> tuple[int, int] | None:
    """Return where something within a line comes for the second time of many, and how long it is.

    Args:
        text: a completion.
        is_cut_off: the model had not ended it: a text that ends with a loop of anything would have
            gone on with it.
    """
    at = 0
    for line in text.split("\n"):
        found = _loop_in_line(line[:_MAX_LINE_CHARS], is_cut_off and at + len(line) == len(text))
        if found is not None:
            return at + found[0], found[1]
        at += len(line) + 1
    return None


def _loop_in_line(line: str, is_cut_off: bool) -> tuple[int, int] | None:
    for length in range(1, min(_MAX_UNIT_CHARS, len(line) // 3) + 1):
        start = 0
        for at in range(length, len(line) + 1):
            if at < len(line) and line[at] == line[at - length]:
                continue
            # line[start:at] has this period.
            unit = line[start : start + length]
            times = (at - start) // length
            if times >= 3 and times >= _least_times(unit, is_cut_off and at == len(line)):
                return start + length, length
            start = at - length + 1
    return None


def _least_times(unit: str, is_last: bool) -> float:
    """Return how many times in a row make a loop of it; rules of signs and zeros are none."""
    if not unit.strip():
        return math.inf
    if is_last:
        return 4
    if not any(char.isalpha() for char in unit):
        return math.inf
    if len(set(unit)) == 1:
        return 12 / len(unit)
    is_one_word = len(unit) >= _MIN_TELLING_CHARS and not any(char in " \t,;" for char in unit)
    return 3 if is_one_word else 5


def drop_loop(text: str, prefix: str, is_cut_off: bool) -> str:
    """Cut at the second time of something that comes again and again within a line.

    Where nothing but it is written, or the text before the cursor ends with it already, nothing is
    left: what a model says when it runs into a loop at once is no suggestion.
    """
    found = loop_start(text, is_cut_off)
    if found is None:
        return text
    second, length = found
    unit = text[second - length : second]
    lines = text[: text.rfind("\n", 0, second) + 1].split("\n")[:-1]
    while lines and _leads_to_loop(lines[-1], unit):
        lines.pop()
    if any(line.strip() for line in lines):
        return "\n".join(lines)
    if "\n" in text[:second]:
        return ""
    said_before = text[: second - length].strip()
    if not said_before or prefix.endswith(unit) or said_before.endswith(unit.strip()):
        return ""
    if WORD.match(unit) and WORD.match(said_before[-1]):
        return _LAST_WORD.sub("", text[: second - length])  # the word ran into the loop
    return text[:second]


def _leads_to_loop(line: str, unit: str) -> bool:
    """Whether a line above a loop is on the way there: two letters alike are in many words."""
    return unit * _least_on_the_way(unit) in line


def _least_on_the_way(unit: str) -> int:
    return 2 if len(unit) >= _MIN_TELLING_CHARS else 4


def stops_loops(line: str) -> bool:
    """Whether a loop further down, of anything, leaves this line and those above it alone."""
    for length in range(1, min(_MAX_UNIT_CHARS, len(line) // 2) + 1):
        for start in range(len(line) - 2 * length + 1):
            unit = line[start : start + length]
            if unit.strip() and line.startswith(unit * _least_on_the_way(unit), start):
                return False
    return True


def drop_repeats_within(lines: list[str]) -> list[str]:
    """Keep the first of a block of lines that comes three times in a row."""
    for start in range(len(lines)):
        for period in range(1, MAX_PERIOD_LINES + 1):
            block = lines[start : start + period]
            again = lines[start + period : start + 3 * period]
            if again == block * 2 and says_something(block):
                return lines[: start + period]
    return lines


def repeats_above(lines: list[str], around: Sides) -> bool:
    """Whether the completion's first two lines, or its only one, stand right above already.

    One line may follow its own likeness once (`next(rows)` twice); not a third time.
    """
    above = [line.rstrip() for line in around.prefix.split("\n")]
    proposed = [above.pop() + lines[0], *lines[1:]]
    proposed = [line.rstrip() for line in proposed if line.strip()]
    above = [line for line in above if line]
    if not proposed or not says_something(proposed[:1]):
        return False
    if len(proposed) == 1 and above[-2:] == proposed * 2:
        return True
    return len(proposed) > 1 and above[-2:] == proposed[:2]


def drop_lines_below(lines: list[str], around: Sides) -> list[str]:
    """Drop what the completion writes of the lines below, and what it writes after them.

    It is cut at its first line that is the next line of the file; where that line is a common one,
    such as `return` or a closer, only if the completion ends with the file's next lines, in order.
    """
    below = [line.rstrip() for line in around.suffix.split("\n")[1:]]
    below = [line for line in below if line]
    if first_line(around.suffix).strip() or not below:
        return lines
    whole = [around.before + lines[0], *lines[1:]]
    for start in range(len(whole)):
        tail = [line.rstrip() for line in whole[start:] if line.strip()]
        if not tail or tail[0] != below[0]:
            continue
        if tail == below[: len(tail)] and says_something(tail):
            return lines[:start]
        if whole[start].strip() and _is_telling(below[0]):
            return lines[:start]
    return lines


def _is_telling(line: str) -> bool:
    """Whether a line is hardly written twice in a row by chance."""
    short = line.strip()
    if not says_something([short]) or _COMMON.match(line):
        return False
    return len(short) >= _MIN_TELLING_CHARS or short.endswith(",")
