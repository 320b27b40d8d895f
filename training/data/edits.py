"""What the text around a middle was before an edit: real changes between releases, or made up.

Made up are a name that was another one (rename), lines that were not there yet (insertion), and
lines that have gone since (deletion). The text after the edit is always the real one.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from .syntax import Source

KINDS = ("release", "rename", "insertion", "deletion")
MAX_LINES = 6  # of one insertion or deletion that is made up
MAX_HUNKS = 4  # changes between releases that are undone together
MAX_HUNK_CHARS = 1200
MAX_DIFFED_CHARS = 60_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")
_KEYWORDS = frozenset(
    "and assert async await break case catch class const continue def default del elif else except "
    "export extends false finally for from function global import instanceof interface lambda let "
    "new none nonlocal not null pass raise return self super switch this throw true try type "
    "typeof undefined var void while with yield False None True".split()
)
# Parts of names that people exchange; a name without one gets another name of the file.
_PARTS = ("get", "set", "new", "old", "value", "data", "item", "name", "result", "num", "count")

Hunk = tuple[int, int, str]  # of the text as it is: [start, end) was that


class Window(NamedTuple):
    """A window [a, b) of a text with the middle [start, end) in it, in characters."""

    a: int
    start: int
    end: int
    b: int


def hunks_between(old: str, new: str) -> list[Hunk]:
    """Return the changes that lead back from the newer text; [] if they are too long to compare."""
    if max(len(old), len(new)) > MAX_DIFFED_CHARS:
        return []
    a, b = new.splitlines(keepends=True), old.splitlines(keepends=True)
    at = [0]
    for line in a:
        at.append(at[-1] + len(line))
    found = difflib.SequenceMatcher(None, a, b).get_opcodes()
    hunks = [(at[i], at[j], "".join(b[k:m])) for kind, i, j, k, m in found if kind != "equal"]
    return [h for h in hunks if max(h[1] - h[0], len(h[2])) <= MAX_HUNK_CHARS]


def before_edit(
    rng: random.Random, source: Source, window: Window, hunks: Sequence[Hunk] = ()
) -> tuple[str, str] | None:
    """Return the texts before and after the cursor as they were before an edit, or None.

    Args:
        rng: decides.
        source: the text as it is.
        window: what of it is shown; the edit lies in it and outside of the middle.
        hunks: changes between two releases that lead back, which come first if any lies there.
    """
    a, start, end, b = window
    real = [h for h in hunks if a <= h[0] and h[1] <= start or end <= h[0] and h[1] <= b]
    if real and rng.random() < 0.8:
        undone = sorted(rng.sample(real, min(len(real), rng.randrange(1, MAX_HUNKS + 1))))
    else:
        make = rng.choice((_rename, _rename, _insertion, _deletion))
        undone = make(rng, source, window)
    if not undone:
        return None
    text = source.text
    return _undone(text, a, start, undone), _undone(text, end, b, undone)


def _undone(text: str, low: int, high: int, hunks: Sequence[Hunk]) -> str:
    parts, at = [], low
    for first, last, old in hunks:
        if low <= first and last <= high and first >= at:
            parts += [text[at:first], old]
            at = last
    return "".join(parts) + text[at:high]


def _rename(rng: random.Random, source: Source, window: Window) -> list[Hunk]:
    """A name had another one, everywhere but in the middle, which is not there yet."""
    a, start, end, b = window
    text = source.text
    uses: dict[str, list[int]] = {}
    for low, high in ((a, start), (end, b)):
        for match in _NAME.finditer(text, low, high):
            uses.setdefault(match[0], []).append(match.start())
    names = [name for name, at in uses.items() if len(at) >= 2 and name not in _KEYWORDS]
    asked = [name for name in names if name in set(_NAME.findall(text[start:end]))]
    if not names:
        return []
    name = rng.choice(asked if asked and rng.random() < 0.7 else names)
    old = _other_name(rng, name, list(uses))
    return [(at, at + len(name), old) for at in uses[name]] if old != name else []


def _other_name(rng: random.Random, name: str, names: list[str]) -> str:
    found = [part for part in _PARTS if part in name]
    if found:
        part = rng.choice(found)
        return name.replace(part, rng.choice([p for p in _PARTS if p != part]), 1)
    other = rng.choice([n for n in names if n not in _KEYWORDS] or [name + "s"])
    return rng.choice((other + "_" + name, name + "_" + rng.choice(_PARTS), other))


def _insertion(rng: random.Random, source: Source, window: Window) -> list[Hunk]:
    """Some whole lines were not there yet."""
    lines = _lines(source, window.a, window.start) or _lines(source, window.end, window.b)
    if rng.random() < 0.5:
        lines = _lines(source, window.end, window.b) or lines
    if not lines:
        return []
    first = rng.randrange(len(lines))
    last = min(len(lines) - 1, first + rng.randrange(MAX_LINES))
    return [(lines[first][0], lines[last][1], "")]


def _deletion(rng: random.Random, source: Source, window: Window) -> list[Hunk]:
    """Some lines, like others of the file, were there and have gone."""
    here = _lines(source, window.a, window.start) + _lines(source, window.end, window.b)
    there = _lines(source, 0, window.a) + _lines(source, window.b, len(source.text)) or here
    if not here or not there:
        return []
    at = rng.choice(here)[0]
    first = rng.randrange(len(there))
    part = there[first : first + rng.randrange(1, MAX_LINES + 1)]
    return [(at, at, "".join(source.text[low:high] for low, high in part))]


def _lines(source: Source, low: int, high: int) -> list[tuple[int, int]]:
    """Return the whole lines in [low, high), each with its line end."""
    starts = [*source.starts, len(source.text)]
    pairs = zip(starts, starts[1:], strict=False)
    return [(a, b) for a, b in pairs if low <= a and b <= high and a < b]
