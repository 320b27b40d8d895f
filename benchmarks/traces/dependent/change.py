"""Edits that the completion depends on: the scored place uses what was changed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..cases import REACH_AFTER, REACH_BEFORE, Case, edited_case, line_start, stretch_from
from ..hunks import Hunk, undone
from ..sources import Source

KINDS = (
    "rename-variable", "rename-parameter", "rename-function", "signature", "constant", "import",
)  # fmt: skip
# The use stands within the tokens that are scored.
_LATEST_USE = 60
_MOST_PER_CHANGE = 2
_FAR_FIRST = 0.6  # share of files
_MOST_PLACES = 40  # that a change has
SHORTEST_NAME = 3  # that is renamed
_WORD = re.compile(r"[A-Za-z][a-z]+")
_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]*")
_COMMON = 2  # times that a word is in a file's names before new names are made with it


class Change(NamedTuple):
    """Something that is changed everywhere, and the places that use it.

    Attributes:
        kind: one of `KINDS`.
        text: the document before the change.
        hunks: of the change, those at the uses too.
        definition: where the thing is defined, in `text`.
        uses: where it is used, in `text`.
        detail: what is changed, in words.
    """

    kind: str
    text: str
    hunks: list[Hunk]
    definition: int
    uses: list[int]
    detail: str


class Names:
    """New names in the style of a file, made of words that its own names are made of."""

    def __init__(self, text: str, rng: random.Random) -> None:
        """Read the words of the names in `text`."""
        self.taken = set(_IDENTIFIER.findall(text))
        counts = Counter(word.lower() for name in self.taken for word in _WORD.findall(name))
        self._words = sorted(w for w, n in counts.items() if n >= _COMMON and 3 < len(w) < 11)
        self._rng = rng

    def instead_of(self, name: str) -> str | None:
        """Return a name that the file does not have, in the style of `name`; None without words."""
        last = (_WORD.findall(name) or [""])[-1].lower()
        for _ in range(20):
            if len(self._words) < 8:
                return None
            first, second = self._rng.sample(self._words, 2)
            if len(last) > 3 and self._rng.random() < 0.5 and first != last:
                second = last
            bare = name.lstrip("_$")
            lead = name[: len(name) - len(bare)]
            if bare.isupper():
                new = f"{first}_{second}".upper()
            elif bare[:1].isupper():
                new = first.capitalize() + second.capitalize()
            elif "_" not in bare and (bare != bare.lower() or self._is_camel()):
                new = first + second.capitalize()
            else:
                new = f"{first}_{second}"
            if lead + new not in self.taken:
                self.taken.add(lead + new)
                return lead + new
        return None

    def _is_camel(self) -> bool:
        humps = sum(bool(re.fullmatch(r"[a-z]+[A-Z]\w*", name)) for name in self.taken)
        return humps > sum(bool(re.fullmatch(r"[a-z]+_[a-z_]+", name)) for name in self.taken)


def renaming(
    kind: str, text: str, places: list[int], name: str, new: str, definition: int, uses: list[int]
) -> Change:
    """Return the change of a name at all its places, which are offsets of it in `text`."""
    hunks = [Hunk(at, at + len(name), new) for at in sorted(set(places))]
    return Change(kind, text, hunks, definition, uses, f"{name} becomes {new}")


def backwards(
    kind: str, text: str, hunks: list[Hunk], definition: int, uses: list[int], detail: str
) -> Change:
    """Return the change that leads to `text`, from what `hunks` make of it."""
    before, back = undone(text, hunks)

    def earlier(at: int) -> int:
        return at + sum(hunk.growth for hunk in hunks if hunk.end <= at)

    return Change(kind, before, back, earlier(definition), [earlier(use) for use in uses], detail)


def new_value(old: str, names: Names) -> str | None:
    """Return another literal of the same type; None for what is no simple literal."""
    if old in ("True", "False"):
        return str(old != "True")
    if old in ("true", "false"):
        return "false" if old == "true" else "true"
    if re.fullmatch(r"\d+", old):
        return str(int(old) * 2 + (old == "0"))
    if match := re.fullmatch(r"""(["'])([\w -]+)\1""", old):
        new = names.instead_of(re.sub(r"\W", "_", match[2]) or "value")
        return f"{match[1]}{new}{match[1]}" if new else None
    return None


def cases(
    kind: str,
    source: Source,
    rng: random.Random,
    find: Callable[[str, str, Names, str], Iterator[Change]],
) -> Iterator[Case]:
    """Yield cases of one kind; `find` knows the changes of a text in a language."""
    found = [
        (change, use)
        for change in find(kind, source.text, Names(source.text, rng), source.language)
        if len(change.hunks) <= _MOST_PLACES
        for use in change.uses
    ]
    rng.shuffle(found)
    if rng.random() < _FAR_FIRST:  # most uses of a name are near the one before
        found.sort(key=lambda item: -_gap(*item))
    counts: Counter[int] = Counter()
    for change, use in found:
        if counts[id(change)] < _MOST_PER_CHANGE and (case := _case(source.path, change, use)):
            counts[id(change)] += 1
            yield case


def _gap(change: Change, use: int) -> int:
    """Return how far a use is behind the change before it; 0 where the window does not reach."""
    gap = use - max((hunk.end for hunk in change.hunks if hunk.end < use), default=use)
    return gap if gap < REACH_BEFORE else 0


def _case(path: str, change: Change, use: int) -> Case | None:
    start = line_start(change.text, use)
    if use - start > _LATEST_USE or change.definition >= start:
        return None
    if (stretch := stretch_from(change.text, start)) is None:
        return None
    # Something of the change lies before the place, inside of the window.
    if not any(start - REACH_BEFORE <= hunk.start and hunk.end < start for hunk in change.hunks):
        return None
    case = edited_case(path, change.text, stretch, [change.hunks], change.detail)
    return case if case and case.distance <= REACH_BEFORE + REACH_AFTER else None
