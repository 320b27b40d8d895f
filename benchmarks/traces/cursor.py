"""The cursor goes elsewhere, or stands where an editor closes a bracket by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .cases import Case, code_starts, stretch_from
from .sources import Source

LINES = {"cursor-1": 1, "cursor-5": 5, "cursor-50": 50}
KINDS = (*LINES, "bracket")
_CLOSERS = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'", "`": "`"}
_CONTENT = (40, 480)  # shortest and longest text between brackets, in code points
_MOST_PER_FILE = 12


def cases(kind: str, source: Source, rng: random.Random) -> Iterator[Case]:
    """Yield cases of one kind."""
    if kind == "bracket":
        yield from brackets(source, rng)
        return
    text, lines = source.text, LINES[kind]
    starts = list(code_starts(text, 0, len(text)))
    rng.shuffle(starts)
    for start in starts:
        if (stretch := stretch_from(text, start)) is None:
            continue
        end = stretch[1]
        reference, rest = text[start:end], text[:start] + text[end:]
        other = lines_away(rest, start, lines if rng.random() < 0.5 else -lines)
        if other is None or reference.strip() in rest:
            continue
        yield Case(
            source.path,
            [
                {"open": {"path": source.path, "text": rest}},
                {"cursor": {"offset": other}},
                {"idle": {"ms": 3000}},
                {"complete": {"offset": start, "reference": reference}},
            ],
            abs(other - start),
            # The side of the cursor on which it was.
            "before" if other < start else "after",
            0,
            f"{lines} lines {'up' if other > start else 'down'}",
        )


def lines_away(text: str, at: int, lines: int) -> int | None:
    """Return the end of the line so many below a place, above if negative; None without one."""
    while lines > 0:
        if (found := text.find("\n", at)) < 0:
            return None
        at, lines = found + 1, lines - 1
    while lines < 0:
        if (found := text.rfind("\n", 0, at)) < 0:
            return None
        at, lines = found, lines + 1
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def brackets(source: Source, rng: random.Random) -> Iterator[Case]:
    """Yield places where a bracket or a quote was opened, with its closer behind the cursor."""
    text = source.text
    found = []
    for at, opener in enumerate(text):
        closer = _CLOSERS.get(opener)
        if closer is None or not text[:at].rsplit("\n", 1)[-1].strip():
            continue
        end = matching(text, at, opener, closer)
        if end is None:
            continue
        line_rest = text[end + 1 : text.find("\n", end)]
        if _CONTENT[0] <= end - at - 1 <= _CONTENT[1] and len(line_rest.strip()) <= 2:
            found.append((at, end))
    rng.shuffle(found)
    for at, end in found[:_MOST_PER_FILE]:
        reference = text[at + 1 : end]
        rest = text[:at] + text[end + 1 :]
        if reference.strip() in rest or not reference.strip():
            continue
        pair = text[at] + text[end]
        yield Case(
            source.path,
            [
                {"open": {"path": source.path, "text": rest}},
                {"cursor": {"offset": at}},
                {"idle": {"ms": 3000}},
                {"edit": {"start": at, "end": at, "text": pair}},
                {"complete": {"offset": at + 1, "reference": reference}},
            ],
            0,
            "at",
            1,
            f"{pair} typed",
        )


def matching(text: str, at: int, opener: str, closer: str) -> int | None:
    """Return where the closer of a bracket or a quote is; None if it is not near."""
    last = min(len(text), at + _CONTENT[1] + 2)
    if opener == closer:
        if text[at - 1 : at + 2].count(opener) > 1:
            return None  # of three
        end = text.find(closer, at + 1, last)
        inside = text[at + 1 : end]
        line = text[text.rfind("\n", 0, at) + 1 : at]
        is_opener = line.count(opener) % 2 == 0 and end > 0
        return end if is_opener and "\\" not in inside and ("\n" not in inside) else None
    depth = 0
    for place in range(at, last):
        depth += (text[place] == opener) - (text[place] == closer)
        if not depth:
            return place
    return None
