"""A document as the host holds it: its session, its version, and the jobs that wait for it.

Used in the worker thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from ..wire.config import CompletionParams
from ..wire.errors import BadPosition, BadRequest, EngineError, VersionMismatch
from ..wire.protocol import Request, from_plain

DocumentKey = tuple[Hashable, str]


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
    """

    client: Hashable
    request: Request
    on_result: Callable[[object], None]
    on_event: Callable[..., None]
    cancelled: str | None = None

    @property
    def is_completion(self) -> bool:
        """All other jobs of documents are text changes: cheap, and done at once."""
        return self.request.method == "complete"

    @property
    def urgency(self) -> Urgency:
        """What the job may interrupt."""
        if not self.is_completion:
            return Urgency.PATCH
        return Urgency.INVOKED if self.request.params["invoked"] else Urgency.AUTOMATIC


@dataclass(eq=False)
class HeldDocument:
    """One document of one client.

    Attributes:
        key: the client and its name for the document.
        jobs: waiting, in the order they came.
        used: when a job came last, by the scheduler's count.
        session: the engine's; None before `open` and after `close`.
        problem: why it could not be opened.
        version: the client's version of the text; None when the text is not the client's any more.
        visible: somebody looks at it.
        behind: the cache must follow the text, this urgently.
    """

    key: DocumentKey
    jobs: deque[Job] = field(default_factory=deque)
    used: int = 0
    session: Any = None
    problem: EngineError | None = None
    version: int | None = None
    visible: bool = True
    behind: Urgency | None = None
    _has_cursor: bool = False

    @property
    def wants_healing(self) -> bool:
        """Somebody looks at it and its cache is not what a prefill would give."""
        return self.visible and self.session is not None and self.session.num_stale > 0

    def change(self, request: Request, engine: Any) -> None:  # noqa: ANN401 - or a fake
        """Do what a request other than a completion asks; the text changes, the cache does not.

        Raises:
            VersionMismatch: the whole text is needed.
            EngineError: the document cannot be opened; it keeps saying so.
        """
        params = request.params
        if request.method == "close":
            self.close(engine)
        elif request.method == "open":
            self._open(params, engine)
        elif request.method == "focus":
            self._focus(params)
        else:
            session = self._need_session()
            if request.method == "replace":
                session.set_text(params["text"])
            else:
                self._edit(params)
            self.version = params["version"]
            self._fall_behind(Urgency.PATCH)

    def complete(self, job: Job, check: Callable[[], None]) -> dict[str, Any]:
        """Complete as the job asks; it can be asked again after Interrupted.

        Raises:
            VersionMismatch: the job is about another text.
            EngineError: whatever the session raises.
        """
        params = job.request.params
        session = self._need_session()
        if self.version != params["version"]:
            raise VersionMismatch(
                f"a completion for version {params['version']} came while the host holds version "
                f"{self.version}; send the whole text"
            )

        def on_text(piece: str, probability: float) -> None:
            job.on_event("text", text=piece, probability=probability)

        completion_params = from_plain(CompletionParams, params["params"])
        completion = session.complete(params["offset"], completion_params, check, on_text)
        self._has_cursor, self.behind = True, None
        return asdict(completion)

    def close(self, engine: Any) -> None:  # noqa: ANN401 - or a fake
        """Let the engine forget it."""
        if engine is not None and self.session is not None:
            engine.close(self.key)
        self.session = self.problem = self.behind = self.version = None

    def _open(self, params: dict[str, Any], engine: Any) -> None:  # noqa: ANN401 - or a fake
        self.close(engine)
        self.visible, self._has_cursor = params["visible"], params["cursor"] is not None
        try:
            self.session = engine.open(
                self.key,
                params["text"],
                path=params["path"],
                model=params["model"],
                policy=params["policy"],
                layout=params["layout"],
            )
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
        self.visible = params["visible"]
        if params["cursor"] is not None:
            session.set_cursor(params["cursor"])
            self._has_cursor = True
        if self.visible:
            self._fall_behind(Urgency.WARM)

    def _edit(self, params: dict[str, Any]) -> None:
        if self.version != params["base"]:
            raise VersionMismatch(
                f"an edit of version {params['base']} came while the host holds version "
                f"{self.version}; send the whole text"
            )
        self.version = None  # half of the edits may be in when one is bad
        end_of_last = 0
        try:
            for start, end, text in params["edits"]:
                self.session.edit([(start, end, text)])
                end_of_last = start + len(text)
        except BadPosition as error:
            raise VersionMismatch(str(error)) from None
        if params["edits"] and not self._has_cursor:
            self.session.set_cursor(end_of_last)
            self._has_cursor = True

    def _need_session(self) -> Any:  # noqa: ANN401 - or a fake
        if self.problem is not None:
            raise self.problem
        if self.session is None:
            raise BadRequest(f"document '{self.key[1]}' is not open here; open it first")
        return self.session

    def _fall_behind(self, urgency: Urgency) -> None:
        self.behind = urgency if self.behind is None else min(self.behind, urgency)
