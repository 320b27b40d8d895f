"""Drafts from text that is there, and how often drafts of each kind come true.

Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): what followed the last
tokens where they stood before is likely to follow them again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Nothing is searched for longer than this; longer matches come true about as often.
LONGEST_MATCH = 8
# Stands between texts, and is no token.
_GAP = -1
# Texts that are remembered, and how long one may be, in characters.
_PAST_TEXTS, _PAST_CHARS = 6, (4, 4000)
# Of what was learnt before, so much counts beside the newest draft.
_KEPT = 0.95
# How often drafts come true that match 0, 1, 2, ... tokens, and that the first layers give a
# probability of 0.0, 0.1, ...: of the embedded model in held-out files.
_LOOKUP_GUESSES = (0.1, 0.3, 0.6, 0.65, 0.65, 0.65, 0.75, 0.75, 0.9)
_EXIT_GUESSES = (0.1, 0.3, 0.35, 0.45, 0.45, 0.55, 0.7, 0.85, 0.9, 0.97)
# Until it is known what lookups promise; they are to promise so many times what a search takes, or
# are only tried again after so many steps; and how fast figures follow.
_LOOKUP_GAIN, _LEAST_RETURN, _SEARCHED_AGAIN, _FOLLOW_SEARCH = 1.5, 2.0, 8, 0.1
# Until it is known what self-speculation gains it counts as so much quicker than no draft.
_EXIT_GAIN = 1.15
SOURCES = frozenset({"lookup", "exits", "skips"})


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        token_ids: in order.
        num_matched: so many tokens before them are the same where they were found.
    """

    token_ids: list[int]
    num_matched: int


NOTHING = Draft([], 0)


class PromptLookup:
    """Finds what followed the last tokens elsewhere; made anew for every request.

    It is searched in one array: the text behind the cursor, the text before it and what is
    generated, then other texts. Of equally long matches the last counts: other texts before the
    document, the newest of them first, and in the document what is near before what is far.
    """

    def __init__(
        self, before: Ints, behind: Ints, others: Sequence[Ints] = (), *, max_tokens: int
    ) -> None:
        """Take the texts.

        Args:
            before: tokens before the cursor.
            behind: tokens behind it.
            others: tokens of texts that are in neither, the newest last.
            max_tokens: so many are taken at most.
        """
        gap = np.array([_GAP])
        room = np.full(max_tokens + 1, _GAP)
        parts = [behind, gap, before, room]
        for other in others:
            parts += [other, gap]
        self._text: Ints = np.concatenate(parts).astype(np.int64)
        self._start = len(behind) + 1  # of what may be matched
        self._limit = self._start + len(before) + max_tokens
        self._end = self._start + len(before)

    def take(self, token_id: int) -> None:
        """Note that a token was generated."""
        if self._end < self._limit:
            self._text[self._end] = token_id
        self._end += 1

    def draft(self, max_tokens: int) -> Draft:
        """Return what may come next: the tokens behind the longest match, the last of several."""
        text, end = self._text, self._end
        if max_tokens < 1 or not self._start < end <= self._limit:
            return NOTHING
        found = np.flatnonzero(text[:-1] == text[end - 1])
        # Something must follow, so this is not the end itself.
        found = found[text[found + 1] != _GAP]
        if not len(found):
            return NOTHING
        length = 1
        while length < min(LONGEST_MATCH, end - self._start):
            longer = found[text[found - length] == text[end - 1 - length]]
            if not len(longer):
                break
            found, length = longer, length + 1
        at = int(found[-1]) + 1
        token_ids = text[at : at + max_tokens]
        gaps = np.flatnonzero(token_ids == _GAP)
        return Draft(token_ids[: gaps[0] if len(gaps) else None].tolist(), length)


class PastTexts:
    """What was just deleted, and what was just completed: it often comes back."""

    def __init__(self, encode: Callable[[str], Ints]) -> None:
        """Start with nothing; `encode` makes tokens of a text."""
        self._encode = encode
        self._texts: deque[str | Ints] = deque(maxlen=_PAST_TEXTS)

    def deleted(self, text: str) -> None:
        """Note that a text is no longer there; short ones, and very long ones, are passed over."""
        if _PAST_CHARS[0] <= len(text.strip()) and len(text) <= _PAST_CHARS[1]:
            self._texts.append(text)

    def completed(self, token_ids: Sequence[int]) -> None:
        """Note what was suggested; part of it may be typed, or asked for again."""
        if len(token_ids) > 1:
            self._texts.append(np.array(token_ids, dtype=np.int64))

    def token_ids(self) -> list[Ints]:
        """Return the tokens of each text, the newest last."""
        for at, text in enumerate(self._texts):
            if isinstance(text, str):
                self._texts[at] = self._encode(text)
        return [text for text in self._texts if not isinstance(text, str)]


class Rates:
    """How often drafted tokens come true, by how promising they looked: moving averages."""

    def __init__(self, guesses: Sequence[float]) -> None:
        """Start with a guess for each class, from the least to the most promising."""
        self._values = list(guesses)

    def of(self, number: int) -> float:
        """Return the rate of a class; those above the last are counted with it."""
        return self._values[min(number, len(self._values) - 1)]

    def note(self, number: int, *, came_true: bool) -> None:
        """Take one case into account."""
        at = min(number, len(self._values) - 1)
        self._values[at] += (1 - _KEPT) * (came_true - self._values[at])


@dataclass
class LookupWorth:
    """Whether it pays to look drafts up, and what that takes aside from the passes.

    A GPU's step may take less than a millisecond, and to search, and to drop what was drafted in
    vain, a tenth of that: where little is found, most steps go without.

    Attributes:
        promised: tokens in the time of one without a draft, as it was expected of each search.
        search_ms: what a search takes.
        drop_ms: what it takes to drop a draft.
        waited: steps since the last search.
        step_ms: what a step without a draft takes, as was said last; no search or drop counts for
            more, as one that took longer was kept waiting.
    """

    promised: float = _LOOKUP_GAIN
    search_ms: float = 0.0
    drop_ms: float = 0.0
    waited: int = 0
    step_ms: float = math.inf

    def is_due(self, step_ms: float) -> bool:
        """Return whether to search before a step that takes so long without a draft."""
        self.waited += 1
        self.step_ms = step_ms
        pays = self.promised > 1 + _LEAST_RETURN * self.search_ms / step_ms
        return pays or self.waited >= _SEARCHED_AGAIN

    def note_search(self, promised: float, ms: float) -> None:
        """Note what a search has promised, and what it took."""
        self.waited = 0
        self.promised += _FOLLOW_SEARCH * (promised - self.promised)
        self.search_ms += _FOLLOW_SEARCH * (min(ms, self.step_ms) - self.search_ms)

    def note_drop(self, ms: float) -> None:
        """Note what it took to drop a draft."""
        self.drop_ms += _FOLLOW_SEARCH * (min(ms, self.step_ms) - self.drop_ms)


@dataclass
class OwnDrafts:
    """What drafts that some of the model's layers make have been worth so far.

    Attributes:
        rates: how often the likeliest token there comes true, by its probability there.
        gain: tokens that they give in the time of one without a draft; infinite: they are made
            whatever they gain.
        waited: steps since they were made last.
    """

    rates: Rates = field(default_factory=lambda: Rates(_EXIT_GUESSES))
    gain: float = _EXIT_GAIN
    waited: int = 0


@dataclass
class DraftRecord:
    """What one model's drafts have been worth so far, for all documents.

    Attributes:
        lookup: how often a token behind a match comes true, by the length of the match.
        worth: of lookups.
        exits: of the first layers.
        skips: of all layers but a set of sub-layers.
        num_drafted: tokens that were drafted.
        num_accepted: those of them that came true.
        sources: where drafts may come from.
    """

    lookup: Rates = field(default_factory=lambda: Rates(_LOOKUP_GUESSES))
    worth: LookupWorth = field(default_factory=LookupWorth)
    exits: OwnDrafts = field(default_factory=OwnDrafts)
    skips: OwnDrafts = field(default_factory=OwnDrafts)
    num_drafted: int = 0
    num_accepted: int = 0
    sources: frozenset[str] = SOURCES
