"""Requests that carry a text, matched to documents of the engine that follow such texts by edits.

A request is one more state of the document whose text it differs least from: the engine is told the
edit that leads there, and turns its cache instead of computing all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from itertools import count

from ...engine.wire.config import Completion, CompletionParams
from ...engine.wire.errors import DocumentRefused
from ..activity import Focus
from ..engine_client import EngineClient
from .text_edits import Fingerprint, edits_between

log = logging.getLogger(__name__)

# Files that somebody works in at a time; beyond it the one that was used least recently goes. Their
# caches share the engine's byte budget.
MAX_SESSIONS = 8


class TextSession:
    """One document of the engine, and the text that it has.

    Attributes:
        doc: the engine's name for it.
        seen: its text; None before the first.
        version: of that text.
        num_users: requests that have it or wait for it.
        is_refused: the engine refuses this text.
        turn: held by the request that it is completed for: of two that come at once, both are
            answered.
    """

    def __init__(self, doc: str) -> None:
        """Start without a text."""
        self.doc = doc
        self.seen: Fingerprint | None = None
        self.version = 0
        self.num_users = 0
        self.is_refused = False
        self.turn = asyncio.Lock()


class TextSessions:
    """The sessions of one HTTP server, and what is asked of them.

    Args:
        engine: speaks to the engine host; it is not started here.
        max_sessions: most documents held at a time.
    """

    def __init__(self, engine: EngineClient, max_sessions: int = MAX_SESSIONS) -> None:
        """Hold nothing."""
        self._engine = engine
        self._max_sessions = max_sessions
        self._sessions: list[TextSession] = []  # the one used last comes last
        self._names = map(str, count(1))
        self._focus = Focus(lambda doc, visible: engine.focus(doc, visible=visible))

    def text_of(self, doc: str) -> str | None:
        """Return the text of a document, None if there is none such any more."""
        for session in self._sessions:
            if session.doc == doc and session.seen is not None:
                return session.seen.text
        return None

    async def complete(
        self,
        text: str,
        offset: int,
        params: CompletionParams,
        on_text: Callable[[str, float], None] | None = None,
    ) -> Completion:
        """Complete at a place of a text; cancelling it stops the engine.

        Args:
            text: the whole of it.
            offset: the cursor, in code points.
            params: how to decode.
            on_text: receives each piece of the completion as it comes, and its probability.

        Raises:
            EngineError: whatever the engine says.
        """
        async with self._session_with(text, offset) as session:
            # As one that was asked for: such is never begun again, and so no piece comes twice.
            return await self._engine.complete(
                session.doc, session.version, offset, params, invoked=True, on_text=on_text
            )

    async def warm(self, text: str, offset: int) -> None:
        """Have the cache ready for a place of a text.

        Raises:
            EngineError: whatever the engine says.
        """
        async with self._session_with(text, offset) as session:
            await self._engine.warm(session.doc, session.version, offset)

    @contextlib.asynccontextmanager
    async def _session_with(self, text: str, offset: int) -> AsyncIterator[TextSession]:
        wanted = Fingerprint(text)
        session = self._matched(wanted)
        session.num_users += 1
        try:
            async with session.turn:
                self._follow(session, wanted, offset)
                try:
                    yield session
                except DocumentRefused:
                    session.is_refused = True
                    raise
                finally:  # it is healed in idle time now, and the one before no more
                    self._focus.at(session.doc)
        finally:
            session.num_users -= 1

    def _matched(self, wanted: Fingerprint) -> TextSession:
        """Return the session whose text differs least, or a new one if more than half is new."""
        best: tuple[int, TextSession] | None = None
        for session in reversed(self._sessions):  # of equals the one used last
            seen = session.seen
            if seen is None:
                continue
            shared = wanted.num_shared(seen)
            difference = wanted.num_chars + seen.num_chars - 2 * shared
            if 2 * shared >= wanted.num_chars and (best is None or difference < best[0]):
                best = difference, session
        session = best[1] if best else self._free()
        self._sessions.remove(session)
        self._sessions.append(session)
        return session

    def _free(self) -> TextSession:
        """Return a session for another text: a new one, or the least recently used one."""
        if len(self._sessions) >= self._max_sessions:
            idle = next((one for one in self._sessions if not one.num_users), None)
            if idle is None:
                return self._sessions[0]  # all are waited for: this one's text changes after that
            self._close(idle)
            self._sessions.remove(idle)
        session = TextSession(f"http:{next(self._names)}")
        self._sessions.append(session)
        return session

    def _follow(self, session: TextSession, wanted: Fingerprint, offset: int) -> None:
        """Lead the engine's document to a text."""
        if session.is_refused and session.seen != wanted:  # perhaps this one works
            self._close(session)
        if session.seen is None:
            session.version = 1
            # Nothing is computed before it is asked for: what that takes is the request's.
            self._engine.open(session.doc, 1, wanted.text, "", cursor=offset, visible=False)
        elif edits := edits_between(session.seen.text, wanted.text):
            session.version += 1
            self._engine.edit(session.doc, session.version - 1, session.version, edits)
        session.seen = wanted

    def _close(self, session: TextSession) -> None:
        self._engine.close(session.doc)
        self._focus.closed(session.doc)
        session.seen, session.is_refused = None, False
