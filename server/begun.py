"""A request that is begun before it is certain that somebody pauses, and goes on while it is right.

Whether a pause is one shows only when it is over; the model need not wait for that. A key in
between does not end the work if it is what the model writes there anyway: the rest is the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ..engine.syntax.region import unified
from .documents import Edit
from .known_answers import Answer

# Nobody waits for it any more: so long may a client take to ask at the next place, in seconds.
_GRACE_S = 0.1

# Receives each piece of a completion as it comes, and its probability.
OnText = Callable[[str, float], None]


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
