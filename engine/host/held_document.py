"""A document as the host holds it: its session, its version, and the jobs that wait for it.

Used in the worker thread only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..wire.config import CompletionParams
from ..wire.errors import (
    BadPosition,
    BadRequest,
    Cancelled,
    EngineError,
    VersionMismatch,
    WarmingUp,
)
from ..wire.protocol import Request, from_plain
from .engine_protocol import Check, EngineSession, HostedEngine

DocumentKey = tuple[Hashable, str]

# Instead of a result: the job is answered when the cache is there.
LATER = object()


class Urgency(IntEnum):
    """Less is sooner; work is interrupted by any work of less."""

    INVOKED = 0
    AUTOMATIC = 1
    PATCH = 2
    WARM = 3
    HEAL = 4


@dataclass(eq=False)
class Job:
    """One request on its way.

    Attributes:
        client: whose.
        request: what.
        on_result: receives the result or an EngineError in the worker thread, once, unless the
            client is forgotten first.
        on_event: receives event name and fields, in the worker thread.
        cancelled: why the job is to end; None while it is wanted.
        arrived_at: `time.monotonic()` when it came.
    """

    client: Hashable
    request: Request
    on_result: Callable[[object], None]
    on_event: Callable[..., None]
    cancelled: str | None = None
    arrived_at: float = field(default_factory=time.monotonic)

    @property
    def is_completion(self) -> bool:
        """All other jobs of documents are text changes: cheap, and done at once."""
        return self.request.method in ("complete", "complete_file")

    @property
    def urgency(self) -> Urgency:
        """What the job may interrupt."""
        if not self.is_completion:
            return Urgency.PATCH
        # Who completes a file waits for it.
        is_invoked = self.request.params.get("invoked", True)
        return Urgency.INVOKED if is_invoked else Urgency.AUTOMATIC


@dataclass(eq=False)
class HeldDocument:
    """One document of one client.

    Attributes:
        key: the client and its name for the document.
        jobs: waiting, in the order they came.
        until_warm: done, and answered when the cache is there.
        used: when a job came last, by the scheduler's count.
        session: the engine's; None before `open` and after `close`.
        problem: why it could not be opened.
        version: the client's version of the text; None when the text is not the client's any more.
        visible: somebody looks at it.
        behind: the cache must follow the text, this urgently.
        file: path, model and layout of the session, for requests that bring a file's text.
        kept_until: when it is closed if nobody asks again, in seconds of time.monotonic; None for
            a client's document.
    """

    key: DocumentKey
    jobs: deque[Job] = field(default_factory=deque)
    until_warm: list[Job] = field(default_factory=list)
    used: int = 0
    session: EngineSession | None = None
    problem: EngineError | None = None
    version: int | None = None
    visible: bool = True
    behind: Urgency | None = None
    file: tuple[str, str, str | None] | None = None
    kept_until: float | None = None
    _has_cursor: bool = False
    _was_completed: bool = False  # since it was looked at last

    @property
    def wants_healing(self) -> bool:
        """Somebody looks at it and its cache is worth being healed."""
        return self.visible and self.session is not None and self.session.num_to_heal > 0

    def change(self, job: Job, engine: HostedEngine) -> object:
        """Do what a job other than a completion asks; the text changes, the cache does not.

        Returns:
            What to answer, or LATER.

        Raises:
            VersionMismatch: the whole text is needed.
            EngineError: the document cannot be opened; it keeps saying so.
        """
        request, params = job.request, job.request.params
        if request.method == "close":
            self.close(engine)
        elif request.method == "open":
            self._open(params, engine)
        elif request.method == "focus":
            self._focus(params)
        elif request.method == "others":
            self._need_session().show_others([(path, text) for path, text in params["others"]])
            if self.visible:
                self._fall_behind(Urgency.WARM)
        elif request.method == "warm":
            session = self._session_of(params["version"])
            self._move_cursor(session, params["cursor"])
            self.until_warm.append(job)
            self._fall_behind(Urgency.WARM)
            return LATER
        else:
            self.answer_waiting(Cancelled("the document has changed"))
            session = self._need_session()
            if request.method == "replace":
                session.set_text(params["text"])
            else:
                self._edit(params)
            self.version = params["version"]
            if self.visible or self._was_completed:
                self._fall_behind(Urgency.PATCH)  # another is warmed when it is looked at
        return None

    def complete(self, job: Job, check: Check) -> dict[str, Any]:
        """Complete as the job asks; it can be asked again after Interrupted.

        Raises:
            VersionMismatch: the job is about another text.
            WarmingUp: the cache was not there in the time that the job waits for it.
            EngineError: whatever the session raises.
        """
        params = job.request.params
        session = self._session_of(params["version"])
        completion_params = from_plain(CompletionParams, params["params"])

        def on_text(piece: str, probability: float) -> None:
            job.on_event("text", text=piece, probability=probability)

        self._move_cursor(session, params["offset"])
        try:
            if params["wait_ms"] is not None:
                session.sync(_until(job.arrived_at + params["wait_ms"] / 1e3, check))
            completion = session.complete(
                params["offset"], completion_params, check, on_text if params["stream"] else None
            )
        except (Cancelled, WarmingUp):
            # Who asked looks at this place and may well ask again.
            self._fall_behind(Urgency.WARM)
            raise
        self._was_completed = True
        self.note_warm(session)
        return asdict(completion)

    def note_warm(self, session: EngineSession) -> None:
        """Note that the cache is that of text and cursor; the window may still have to grow."""
        self.behind = Urgency.WARM if session.has_to_grow else None
        self.answer_waiting(None, is_whole=not session.has_to_grow)

    def answer_waiting(self, result: object, *, is_whole: bool = True) -> None:
        """Answer the jobs that wait for a warm cache, all if it is that of the whole window."""
        waiting, self.until_warm = self.until_warm, []
        for job in waiting:
            if job.cancelled is not None:
                job.on_result(Cancelled(job.cancelled))
            elif is_whole or not job.request.params["whole"]:
                job.on_result(result)
            else:
                self.until_warm.append(job)

    def complete_file(
        self,
        job: Job,
        check: Check,
        engine: HostedEngine,
        others: Iterable[HeldDocument],
    ) -> dict[str, Any]:
        """Complete in the text that the job brings; it can be asked again after Interrupted.

        Raises:
            EngineError: whatever engine and session raise.
        """
        params = job.request.params
        session = self._session_for_file(params, engine, others)
        offset = params["offset"]
        if session.anchor != offset:  # nothing typed since a freeze lies before the cursor
            session.set_cursor(0 if offset else len(session.text))
        is_told = False

        def check_and_tell() -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                what = f"prefilling {session.num_prompt_tokens} tokens"
                job.on_event("progress", what=what, percent=0)
            check()

        num_sent = 0

        def on_text(piece: str, _: float) -> None:
            nonlocal num_sent
            job.on_event("text", text=piece, start=num_sent)
            num_sent += len(piece)

        completion_params = from_plain(CompletionParams, params["params"])
        listener = on_text if params["stream"] else None
        return asdict(
            session.complete(offset, completion_params, check_and_tell, listener, heal=True)
        )

    def _session_for_file(
        self,
        params: dict[str, Any],
        engine: HostedEngine,
        others: Iterable[HeldDocument],
    ) -> EngineSession:
        self.visible = False
        text = params["text"]
        file = (real_path(params["path"]), params["model"], params["layout"])
        for held in others:
            session = held.session
            if session is None or session.shows_others:  # a command's text depends on its file
                continue
            if held.file == file and session.text == text:
                return session
        if self.session is None or self.file != file:
            self.session = engine.open(
                self.key,
                text,
                path=params["path"],
                model=params["model"],
                policy=params["policy"],
                layout=params["layout"],
            )
            self.file = file
        self.session.set_text(text)
        return self.session

    def close(self, engine: HostedEngine | None) -> None:
        """Let the engine forget it."""
        self.answer_waiting(Cancelled("the document was closed"))
        if engine is not None and self.session is not None:
            engine.close(self.key)
        self.session = self.problem = self.behind = self.version = None

    def _open(self, params: dict[str, Any], engine: HostedEngine) -> None:
        self.close(engine)
        self.visible, self._has_cursor = params["visible"], params["cursor"] is not None
        self._was_completed = False
        try:
            self.session = engine.open(
                self.key,
                params["text"],
                path=params["path"],
                model=params["model"],
                policy=params["policy"],
                layout=params["layout"],
            )
            self.file = (_file_of(self.key[1]), params["model"], params["layout"])
            # The top is where most editors show a file first; the first edit or focus corrects it.
            self.session.set_cursor(params["cursor"] or 0)
        except EngineError as error:
            self.close(engine)
            self.problem = error
            raise
        self.version = params["version"]
        if self.visible:
            self._fall_behind(Urgency.WARM)

    def _focus(self, params: dict[str, Any]) -> None:
        session = self._need_session()
        self.visible, self._was_completed = params["visible"], False
        if params["cursor"] is not None:
            self._move_cursor(session, params["cursor"])
        if self.visible:
            self._fall_behind(Urgency.WARM)

    def _edit(self, params: dict[str, Any]) -> None:
        if self.version != params["base"]:
            raise VersionMismatch(
                f"an edit of version {params['base']} came while the host holds version "
                f"{self.version}; send the whole text"
            )
        session = self._need_session()
        self.version = None  # half of the edits may be in when one is bad
        end_of_last = 0
        try:
            for start, end, text in params["edits"]:
                session.edit([(start, end, text)])
                end_of_last = start + len(text)
        except BadPosition as error:
            raise VersionMismatch(str(error)) from None
        if params["edits"] and not self._has_cursor:
            self._move_cursor(session, end_of_last)

    def _move_cursor(self, session: EngineSession, offset: int) -> None:
        session.set_cursor(offset)
        self._has_cursor = True

    def _session_of(self, version: int) -> EngineSession:
        session = self._need_session()
        if self.version != version:
            raise VersionMismatch(
                f"a request for version {version} came while the host holds version "
                f"{self.version}; send the whole text"
            )
        return session

    def _need_session(self) -> EngineSession:
        if self.problem is not None:
            raise self.problem
        if self.session is None:
            raise BadRequest(f"document '{self.key[1]}' is not open here; open it first")
        return self.session

    def _fall_behind(self, urgency: Urgency) -> None:
        self.behind = urgency if self.behind is None else min(self.behind, urgency)


def real_path(path: str) -> str:
    """Return the file's one name, or the path itself where it can name no file here."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a NUL or a lone surrogate, for instance
        return path


def _file_of(doc: str) -> str:
    """Return the real path of a document that is named by its URI, or by its path."""
    try:
        is_uri = doc.lower().startswith("file:")
        return real_path(url2pathname(urlsplit(doc).path) if is_uri else doc)
    except ValueError:  # no URI, whatever it begins with
        return doc


def _until(deadline: float, check: Check) -> Check:
    """Return a check that also ends a wait at `deadline`, by `time.monotonic()`."""

    def check_time() -> None:
        check()
        if time.monotonic() >= deadline:
            raise WarmingUp("warming up: the cache is not there yet")

    return check_time
