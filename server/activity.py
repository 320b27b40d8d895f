"""What somebody does: how long they pause, what they deleted, where they look and wait."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.wire.errors import EngineError

if TYPE_CHECKING:
    from .documents import Document, Edit

log = logging.getLogger(__name__)

# Keys that are remembered, and how many have to be known before they say anything.
_NUM_KEYS, _FEWEST_KEYS = 40, 8
# Characters that came or went at once and are remembered: a completion, no file that was pasted.
_LONGEST_UNDONE = 10_000
# What is longer is no pause between two keys: somebody thinks or reads.
_LONGEST_PAUSE_S = 1.0
# So many tenths of the pauses between keys are to be over before a request is begun.
_TENTHS = 9
# Of the shortest that is asked for, so many times is what a pause takes at most, and before anybody
# knows how somebody types.
_MOST_TIMES, _FIRST_TIMES = 4.0, 2.0
# So many deletions in a row are a burst, and none is begun so long after the last of them.
_BURST, _BURST_S = 3, 0.7
# So often, and so long apart, somebody asks in vain at a place before they are taken to insist.
_TIMES_IN_VAIN, _IN_VAIN_S = 2, 2.0
# Documents opened or changed within so short a time are a burst: only the last is looked at.
_BURST_SECONDS = 0.05


@dataclass
class _Deleted:
    """Text that was deleted at one place, and not written since."""

    offset: int
    text: str


@dataclass
class _InVain:
    """How often somebody who does not type was offered nothing at one place, and when last."""

    offset: int = -1
    times: int = 0
    at: float = 0.0


class Pace:
    """One person's typing in one document."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet."""
        self._clock = clock
        self._last_at: float | None = None
        self._cursor: int | None = None  # after the last edit
        self._pauses: deque[float] = deque(maxlen=_NUM_KEYS)
        self._num_deletions = 0
        self._deleted: _Deleted | None = None
        self._inserted: deque[tuple[int, str]] = deque(maxlen=_NUM_KEYS)
        self._in_vain = _InVain()

    def edited(self, edits: Sequence[Edit] | None, before: str) -> None:
        """Note an edit.

        Args:
            edits: as the client sent them; None for a text that is new as a whole.
            before: the text before them.
        """
        now = self._clock()
        self._in_vain = _InVain()
        if self._last_at is not None and now - self._last_at < _LONGEST_PAUSE_S:
            self._pauses.append(now - self._last_at)
        self._last_at = now
        self._cursor = None
        if edits is None or len(edits) != 1:
            self._num_deletions, self._deleted = 0, None
            return
        start, end, text = edits[0]
        self._cursor = start + len(text)
        gone = before[start:end]
        if text:
            self._num_deletions = 0
            self._written(start, end, text)
            if start == end and 1 < len(text) <= _LONGEST_UNDONE:
                self._inserted.append((start, text))
        elif self._inserted and self._inserted[-1] == (start, gone):
            # What came at once goes at once: an undo, after which it may come again.
            self._inserted.pop()
            self._deleted = None
        elif end > start:
            self._num_deletions += 1
            self._delete(start, end, gone)

    def _written(self, start: int, end: int, text: str) -> None:
        """What is typed at the place may begin what was deleted there: then the rest remains."""
        deleted = self._deleted
        if deleted is not None and start == end == deleted.offset and deleted.text.startswith(text):
            rest = deleted.text[len(text) :]
            self._deleted = _Deleted(start + len(text), rest) if rest else None
        else:
            self._deleted = None

    def _delete(self, start: int, end: int, text: str) -> None:
        """Add to what was deleted at the place, by backspaces or forwards."""
        deleted = self._deleted
        if deleted is not None and end == deleted.offset:
            text += deleted.text
        elif deleted is not None and start == deleted.offset:
            text = deleted.text + text
        self._deleted = _Deleted(start, text) if len(text) <= _LONGEST_UNDONE else None

    @property
    def is_deleting(self) -> bool:
        """Whether a burst of deletions is under way."""
        if self._num_deletions < _BURST or self._last_at is None:
            return False
        return self._clock() - self._last_at < _BURST_S

    def pause_s(self, least_s: float) -> float:
        """Return how long nobody has to type for it to be a pause, in seconds.

        Nine of ten pauses between two keys are shorter, so that few requests are begun in vain.

        Args:
            least_s: the shortest.
        """
        if len(self._pauses) < _FEWEST_KEYS:
            return _FIRST_TIMES * least_s
        usual = statistics.quantiles(self._pauses, n=10, method="inclusive")[_TENTHS - 1]
        return min(max(least_s, usual), _MOST_TIMES * least_s)

    def since_key_s(self) -> float:
        """Return how long ago the last edit was, in seconds; 0 before the first."""
        return 0.0 if self._last_at is None else self._clock() - self._last_at

    def left_s(self, pause_s: float, offset: int) -> float:
        """Return how much is left of a pause at a place, in seconds.

        It began with the last key if that left the cursor there, else now: the cursor has moved.
        """
        if self._last_at is None or offset != self._cursor:
            return pause_s
        return max(0.0, pause_s - (self._clock() - self._last_at))

    def offered_nothing(self, offset: int) -> None:
        """Note that an automatic request at a place gave nothing."""
        now = self._clock()
        if self._in_vain.offset != offset:
            self._in_vain = _InVain(offset, 1, now)
        elif now - self._in_vain.at >= _IN_VAIN_S:
            self._in_vain = _InVain(offset, self._in_vain.times + 1, now)

    def insists(self, offset: int) -> bool:
        """Whether somebody asks for the third time at a place where nothing was offered.

        Without a key between, and not as editors do that only look again.
        """
        last = self._in_vain
        is_again = last.offset == offset and self._clock() - last.at >= _IN_VAIN_S
        return is_again and last.times == _TIMES_IN_VAIN

    def was_deleted(self, offset: int, text: str) -> bool:
        """Whether a suggestion at a place is what was just deleted there."""
        deleted = self._deleted
        if deleted is None or deleted.offset != offset:
            return False
        gone, offered = deleted.text.strip(), text.strip()
        return bool(gone) and (
            offered.startswith(gone) or len(offered) > 2 and gone.startswith(offered)
        )


class Focus:
    """Which document is looked at: it is warmed and healed, the others wait.

    Editors have no message for it. An editor that restores a session opens hundreds of documents
    at once, and a rename changes as many; warming them all takes minutes and pushes the one in use
    out.

    Args:
        show: told of a document and whether it is looked at from now on.
    """

    def __init__(self, show: Callable[[str, bool], None]) -> None:
        """Nothing is looked at yet."""
        self.uri: str | None = None
        self._show = show
        self._later: asyncio.TimerHandle | None = None
        self._next: str | None = None  # which is looked at then

    def at(self, uri: str) -> None:
        """Note that a document is certainly looked at."""
        self._forget_later()
        if uri == self.uri:
            return
        before, self.uri = self.uri, uri
        if before is not None:
            self._show(before, False)
        self._show(uri, True)

    def perhaps_at(self, uri: str) -> None:
        """Note that a document was opened or changed: the last one of a burst is looked at."""
        self._forget_later()
        if uri != self.uri:
            loop = asyncio.get_running_loop()
            self._later, self._next = loop.call_later(_BURST_SECONDS, self.at, uri), uri

    def closed(self, uri: str) -> None:
        """Note that a document is not there any more."""
        if uri == self.uri:
            self.uri = None
        if uri == self._next:
            self._forget_later()

    def _forget_later(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = self._next = None


class TooEarly:
    """Places that were asked about before their cache was warm: the client is told when it is.

    Args:
        warm: makes a cache warm: of a URI, a version, an offset and the whole window or not.
        tell: tells the client that asking again is worth it, given document and position.

    Attributes:
        can_ask: whether the client asks again when it is told.
    """

    def __init__(
        self, warm: Callable[..., Awaitable[object]], tell: Callable[[dict[str, Any]], None]
    ) -> None:
        """Nobody waits yet."""
        self.can_ask = False
        self._warm, self._tell = warm, tell
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._told: tuple[str, int, int] | None = None

    def note(self, document: Document, offset: int, version: int, *, whole: bool) -> None:
        """Have the client ask again when the cache is there, of the whole window if `whole`."""
        self.forget(document.uri)
        if self.can_ask and document.version == version:
            waits = self._wait(document, offset, version, whole)
            self._waiting[document.uri] = asyncio.ensure_future(waits)

    def forget(self, uri: str) -> None:
        """Wait no more: there is a newer request, or another document of that name, or none."""
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()

    def was_told(self, document: Document, offset: int) -> bool:
        """Whether the client's request is the one that it was last told to make."""
        told, self._told = self._told, None
        return told == (document.uri, document.version, offset)

    async def _wait(self, document: Document, offset: int, version: int, whole: bool) -> None:
        try:
            await self._warm(document.uri, version, offset, whole=whole)
        except EngineError as error:
            log.info("%s is not warmed: %s", document.uri, error)
            return
        if document.version == version:  # else the text has changed by then
            self._told = (document.uri, version, offset)
            position = document.position(offset)._asdict()
            self._tell({"textDocument": {"uri": document.uri}, "position": position})
