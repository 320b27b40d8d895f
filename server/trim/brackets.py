"""Brackets that a completion opens and closes, and those that wait behind the cursor."""

from __future__ import annotations

import re

PAIRS = {")": "(", "]": "[", "}": "{"}
OPENERS = frozenset(PAIRS.values())
QUOTES = "\"'`"
_MAX_CLOSERS = 20
# Strings of one line, and what is left of comments behind them.
STRING = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`")
_TRIPLE = re.compile(r"'''|\"\"\"")


def scan(text: str, opened: list[str]) -> tuple[list[str] | None, list[int]]:
    """Follow brackets through `text`.

    Returns:
        The brackets open at its end, and where in `text` those open at its start were closed. A
        closer without any opener is passed over; one of the wrong kind gives None.
    """
    stack = list(opened)
    floor = len(stack)
    closers: list[int] = []
    for index, char in enumerate(text):
        if char in OPENERS:
            stack.append(char)
        elif char in PAIRS and stack:
            if stack[-1] != PAIRS[char]:
                return None, closers
            stack.pop()
            if len(stack) < floor:
                floor = len(stack)
                closers.append(index)
    return stack, closers


def num_paired(suffix: str, opened: list[str]) -> int:
    """Return how many of `opened`, innermost first, find their closer in `suffix`."""
    stack: list[str] = list(opened)
    floor = len(stack)
    for char in suffix:
        if char in OPENERS:
            stack.append(char)
        elif char in PAIRS:
            if not stack or stack[-1] != PAIRS[char]:
                break
            stack.pop()
            floor = min(floor, len(stack))
    return len(opened) - floor


def closes_nothing(text: str) -> bool:
    """Whether every closer of `text` has its opener in it."""
    stack: list[str] = []
    for char in text:
        if char in OPENERS:
            stack.append(char)
        elif char in PAIRS and (not stack or stack.pop() != PAIRS[char]):
            return False
    return True


def leaves_open(text: str) -> bool:
    """Whether brackets or triple quotes that `text` opens are open at its end."""
    if len(_TRIPLE.findall(text)) % 2:
        return True
    stack: list[str] = []
    for char in STRING.sub("", _TRIPLE.sub("", text)):
        if char in OPENERS:
            stack.append(char)
        elif char in PAIRS and stack:
            stack.pop()
    return bool(stack)


def first_item(text: str) -> str:
    """Return `text` up to its first comma that is in no bracket and in no string."""
    masked = STRING.sub(lambda match: "_" * len(match.group()), text)
    depth = 0
    for index, char in enumerate(masked):
        depth += (char in OPENERS) - (char in PAIRS)
        if char == "," and depth == 0:
            return text[:index]
    return text


def drop_taken_closers(kept: str, prefix: str, suffix: str) -> str:
    """Drop a closing bracket, and what follows it, that the suffix has for the same opener.

    Told by what happens to the suffix: a closer there that had its opener, and has lost it.
    """
    opened = scan(prefix, [])[0]
    if opened is None or (paired := num_paired(suffix, opened)) == 0:
        return kept
    cut = kept
    for _ in range(_MAX_CLOSERS):
        after, closers = scan(cut, opened)
        if after is not None and num_paired(suffix, after) >= paired:
            return cut
        if not closers:
            break
        cut = cut[: closers[-1]]
    return kept
