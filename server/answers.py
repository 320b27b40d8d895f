"""Answers to requests: those that need no model, one on its way, one that continues a menu entry.

Whether a pause is one shows only when it is over; the model need not wait for that. So a request is
begun before, and a key in between does not end it if that is what the model writes there anyway:
the rest is the answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ..engine.syntax.region import unified
from .documents import Edit
from .trim import first_line

_NUM_KNOWN = 64
# Nobody waits for it any more: so long may a client take to ask at the next place, in seconds.
_GRACE_S = 0.1

# Receives each piece of a completion as it comes, and its probability.
OnText = Callable[[str, float], None]
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


class Begun:
    """One request to the engine, from one place on; used from one event loop.

    Args:
        offset: the place, in code points.
        ask: asks; when the task that awaits it is cancelled, the engine stops.
    """

    def __init__(self, offset: int, ask: Callable[[OnText], Awaitable[Answer]]) -> None:
        """Ask at once."""
        self._offset = offset
        self._typed = ""  # since
        self._heard = ""  # of what the model writes
        self._num_waiting = 0
        self._task = asyncio.ensure_future(self._asked(ask))
        self._task.add_done_callback(heard_out)

    def follow(self, edits: Sequence[Edit]) -> bool:
        """Follow edits; False, and the engine stops, when the text is no longer what it may be."""
        for start, end, text in edits:
            if not start == end == self._offset + len(self._typed):
                self.stop()
                return False
            self._typed += text
        return self._agrees()

    def is_at(self, offset: int) -> bool:
        """Whether the cursor stands behind what has been typed since."""
        return offset == self._offset + len(self._typed)

    async def rest(self) -> Answer | None:
        """Wait, and return what is left of the answer; None if that is nothing for this place."""
        self._num_waiting += 1
        try:
            await asyncio.wait({self._task})
        finally:
            self._num_waiting -= 1
            if not self._task.done():
                asyncio.get_running_loop().call_later(_GRACE_S, self._stop_unless_wanted)
        typed = self._typed
        if self._task.cancelled() or (typed and self._task.exception()):
            return None
        answer = self._task.result()
        if not typed:
            return answer
        if not answer.text.startswith(typed) or answer.text == typed:
            return None
        offset = self._offset + len(typed)
        return replace(answer, text=answer.text[len(typed) :], start=offset, end=offset)

    def stop(self) -> None:
        """Have the engine stop."""
        self._task.cancel()

    async def _asked(self, ask: Callable[[OnText], Awaitable[Answer]]) -> Answer:
        if self._typed:  # before this could run: it would ask in another text
            raise asyncio.CancelledError
        return await ask(self._hear)

    def _hear(self, piece: str, _: float) -> None:
        self._heard += piece
        if self._typed:
            self._agrees()

    def _agrees(self) -> bool:
        """Whether what was typed may still be what the model writes; it stops if not."""
        typed, heard = unified(self._typed), self._heard
        agrees = typed.startswith(heard) or heard.startswith(typed)
        if not agrees:
            self.stop()
        return agrees

    def _stop_unless_wanted(self) -> None:
        if self._num_waiting == 0:
            self.stop()


def heard_out(task: asyncio.Task[Answer]) -> None:
    """Take note of how a task ended: asyncio logs an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


@dataclass(frozen=True, slots=True)
class Selected:
    """What the editor's own menu would insert: `text` for `start:end` of the document."""

    start: int
    end: int
    text: str

    def ends_at(self, document: str, offset: int) -> bool:
        """Whether it replaces text of the cursor's line up to the cursor."""
        replaced = document[self.start : self.end]
        return self.start <= offset == self.end and first_line(replaced) == replaced


def continuing(selected: Selected | None, text: str, answer: Answer) -> Answer:
    """Return `answer` widened to the menu's range, or nothing when it does not continue it."""
    if selected is None or not answer.text:
        return answer
    before = text[selected.start : answer.start]
    whole = before + answer.text
    if not whole.startswith(selected.text):
        reason = f"the completion does not continue the selected entry {selected.text!r}"
        return Answer("", answer.start, answer.end, reason)
    others = tuple(o for each in answer.others if (o := before + each).startswith(selected.text))
    return Answer(whole, selected.start, answer.end, is_cut=answer.is_cut, others=others)
