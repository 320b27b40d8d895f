"""Answers that need no model: what is left of one that is typed on, and those of known texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .documents import Edit

_NUM_KNOWN = 64

# A text and the cursor in it: hashes of what is before and behind.
_Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` replaces `start:end` of the document; when it is empty, `reason` says why.

    Attributes:
        is_cut: there would have been more, or better from the whole window, had there been time.
        origin: "model", "typed through" or "known".
        others: further candidates for the same place.
    """

    text: str
    start: int
    end: int
    reason: str | None = None
    is_cut: bool = False
    origin: str = "model"
    others: tuple[str, ...] = ()


@dataclass
class Shown:
    """The last suggestion of a document, and how much of it has been typed since."""

    text: str
    offset: int
    is_cut: bool
    num_typed: int = 0

    def follow(self, edits: Sequence[Edit]) -> bool:
        """Follow edits; False when the text is no longer what the suggestion was made for."""
        for start, end, text in edits:
            cursor = self.offset + self.num_typed
            if start == end == cursor and self.text.startswith(text, self.num_typed):
                self.num_typed += len(text)
            elif text == "" and self.offset <= start and end == cursor:
                self.num_typed = start - self.offset
            else:
                return False
        return True

    def rest(self, offset: int) -> str | None:
        """Return what is left if the cursor stands behind the typed part, else None."""
        if offset != self.offset + self.num_typed:
            return None
        if self.is_cut and not self.num_typed:
            return None  # nobody has begun to take it: there may be more now
        return self.text[self.num_typed :] or None


class KnownAnswers:
    """Answers by the whole text around the cursor, the least recently used out first.

    Undo, a word deleted and written again, an accepted suggestion whose next was computed ahead:
    the same text and the same place have the same answer.
    """

    def __init__(self) -> None:
        """Know none."""
        self._answers: OrderedDict[_Place, Answer] = OrderedDict()

    def put(self, uri: str, text: str, answer: Answer) -> None:
        """Remember what the model gave; not what time cut short, or the window."""
        if answer.is_cut:
            return
        key = _place(uri, text, answer.start)
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > _NUM_KNOWN:
            self._answers.popitem(last=False)

    def get(self, uri: str, text: str, offset: int) -> Answer | None:
        """Return what is known for a place of this very text."""
        key = _place(uri, text, offset)
        answer = self._answers.get(key)
        if answer is None:
            return None
        self._answers.move_to_end(key)
        return replace(answer, origin="known")

    def clear(self) -> None:
        """Forget all: settings have changed, or the model."""
        self._answers.clear()


def _place(uri: str, text: str, offset: int) -> _Place:
    return uri, hash(text[:offset]), hash(text[offset:])
