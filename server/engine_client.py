"""The engine as the language server sees it: documents go out in order, completions come back.

It outlives the host: a lost host is started again, with back-off, and told all open documents. A
document that two hosts died on is set aside. Used from one event loop; no torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..engine.wire.address import Address, default_address
from ..engine.wire.config import Completion, CompletionParams
from ..engine.wire.errors import (
    BadRequest,
    Cancelled,
    DocumentRefused,
    EngineError,
    HostUnavailable,
    VersionMismatch,
)
from ..engine.wire.protocol import from_plain
from .engine_link import Link, connect
from .heartbeat import Heartbeat, end_host, is_stopped, until_silent
from .sent_documents import SentDocuments, TextOf, model_name
from .settings import Settings

log = logging.getLogger(__name__)

STARTING, LOADING, READY, FAILED, STOPPED = "starting", "loading", "ready", "failed", "stopped"
# Follows the reason of a failure that may pass.
TRYING_AGAIN = "; trying again in "
_FIRST_RETRY_S = 0.1
# So many in a row are no hiccup any more.
_FAILURES_TO_TELL = 3
# A host that lived this long did start well; its loss is not counted with failures before.
_GOOD_LIFE_S = 10.0

_HEARTBEAT = Heartbeat()

OnChange = Callable[[str, str, int], None]


class EngineClient:
    """Speaks to this user's engine host.

    Args:
        command: starts a host; None is the real one.
        address: where the host is; None is this user's own place for this installation.
        heartbeat: when a host that does not answer is given up.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        address: Address | None = None,
        heartbeat: Heartbeat = _HEARTBEAT,
    ) -> None:
        """Nothing happens before `start`."""
        self._heartbeat = heartbeat
        self.address = address or default_address()
        self._command = command
        self._name = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._state, self._reason = STOPPED, "not started yet"
        self._documents = SentDocuments(Settings(), lambda _: None)
        self._load_error: EngineError | None = None
        self._changed = asyncio.Event()
        self._reconnect_now = False
        self._num_starts = 0
        self._lost_pid: int | None = None

    def start(self, settings: Settings, *, on_change: OnChange, text_of: TextOf) -> None:
        """Connect in the background, and stay connected.

        Args:
            settings: what the engine is told.
            on_change: receives "starting", "loading", "ready" or "failed", what is done or why
                it failed, and a percentage.
            text_of: returns the text of an open document, None if there is none any more.
        """
        self._settings, self._on_change = settings, on_change
        self._documents = SentDocuments(settings, text_of)
        self._set_state(STARTING, "the engine is starting")
        self._task = asyncio.ensure_future(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect; the host stays for others."""
        link = self._link
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task} if link is None else {self._task, link.closed})
        self._state, self._reason = STOPPED, "the server is ending"
        self._wake()

    def configure(self, settings: Settings) -> None:
        """Take other settings; the documents are opened anew when the engine needs that."""
        before, self._settings = self._settings, settings
        self._documents.settings = settings
        if self._link is None or settings.engine_config() != before.engine_config():
            self._reconnect_now = True
            if self._link is not None:
                self._link.close()
            self._set_state(STARTING, "the engine settings have changed")
        elif _opening(settings) != _opening(before):
            self._load_and_open(self._link)

    # Documents: noted, and sent at once while there is a host.

    def open(
        self,
        doc: str,
        version: int,
        text: str,
        path: str,
        *,
        cursor: int | None = None,
        visible: bool = True,
    ) -> None:
        """Open a document, or give an open one a whole new text."""
        self._documents.open(doc, version, text, path, cursor, visible)

    def edit(
        self, doc: str, base: int, version: int, edits: Sequence[tuple[int, int, str]]
    ) -> None:
        """Turn version `base` into `version`; each edit is in the text after the one before it."""
        self._documents.edit(doc, base, version, edits)

    def focus(self, doc: str, *, visible: bool = True, cursor: int | None = None) -> None:
        """Warm the cache around a cursor; what is not visible is not healed."""
        self._documents.focus(doc, visible, cursor)

    def close(self, doc: str) -> None:
        """Forget a document."""
        self._documents.close(doc)

    # Questions

    async def complete(
        self,
        doc: str,
        version: int,
        offset: int,
        params: CompletionParams,
        *,
        invoked: bool,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Complete at a place; waits while the engine starts. Cancelling it stops the engine.

        Args:
            doc: an open document.
            version: of its text.
            offset: code points.
            params: how to decode.
            invoked: the user asked, and is served first.
            on_text: receives all the text so far.

        Raises:
            HostUnavailable: there is no engine, or it was lost meanwhile.
            DocumentRefused: the document was set aside.
            EngineError: whatever the engine says.
        """
        held = self._documents.get(doc)
        if held is None:
            raise BadRequest(f"document {doc} is not open")
        link = await self._until_ready()
        asked = {
            "doc": doc,
            "version": version,
            "offset": int(offset),
            "params": asdict(params),
            "invoked": invoked,
        }

        def on_event(_: str, fields: dict[str, Any]) -> None:
            if on_text is not None:
                on_text(fields["text"])

        for is_last in (False, True):
            if held.refusal is not None:
                raise DocumentRefused(held.refusal)
            if held.version != version or self._documents.get(doc) is not held:
                raise Cancelled("the document has changed since")
            try:
                held.cursor = int(offset)
                return from_plain(Completion, await link.request("complete", asked, on_event))
            except VersionMismatch:
                if is_last:
                    raise
                self._documents.mend(doc)
        raise AssertionError("not reached")

    async def host_status(self) -> dict[str, Any]:
        """Return what the host says of itself.

        Raises:
            HostUnavailable: there is none.
        """
        while self._link is None and self._state in (STARTING, LOADING):
            await self._changed.wait()
        if self._link is None:
            raise HostUnavailable(self._reason)
        return await self._link.request("status", {})

    def status(self) -> dict[str, Any]:
        """Return how things stand here, as plain data; waits for nothing."""
        host = self._link.host if self._link is not None else {}
        status: dict[str, Any] = {
            "state": self._state,
            "reason": None if self._state == READY else self._reason,
            "host_pid": host.get("pid"),
            "num_restarts": max(0, self._num_starts - 1),
            "socket": str(self.address.socket),
            "log": str(self.address.log),
            "quarantined": self._documents.refusals(),
        }
        if self._link is not None:
            wanted, real = asdict(self._settings.engine_config()), host["engine"]
            differing = [f"{name} = {real[name]}" for name in wanted if wanted[name] != real[name]]
            if differing:
                status["note"] = (
                    f"another editor window started the engine with {', '.join(differing)}; "
                    "close that one for these settings to take effect"
                )
        return status

    # Connection

    async def _stay_connected(self) -> None:
        num_failures = 0
        loop = asyncio.get_running_loop()
        while True:
            self._reconnect_now = False
            settings = self._settings
            started_at = loop.time()
            try:
                link = await connect(
                    self.address,
                    self._name,
                    settings.engine_config(),
                    command=self._command,
                    idle_s=settings.host_idle_s,
                    timeout_s=settings.host_start_timeout_s,
                    heartbeat=self._heartbeat,
                )
                reason = await self._serve(link)
                if loop.time() - started_at > _GOOD_LIFE_S:
                    num_failures = 0
            except HostUnavailable as error:
                reason = str(error)
            if self._reconnect_now:
                num_failures = 0
                continue
            num_failures += 1
            pause_s = min(_FIRST_RETRY_S * 2 ** (num_failures - 1), settings.host_retry_max_s)
            log.warning("%s; trying again in %g s", reason, pause_s)
            if num_failures < _FAILURES_TO_TELL:
                self._set_state(STARTING, reason)
            else:
                self._set_state(FAILED, f"{reason}{TRYING_AGAIN}{pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    while not self._reconnect_now:
                        await self._changed.wait()

    async def _serve(self, link: Link) -> str:
        """Use a link for as long as it lasts; return why it ended."""
        died_on = link.host["died_on"]
        # Other servers' documents, and deaths told of before, are no concern of this one.
        if died_on and (died_on["pid"], died_on["client"]) == (self._lost_pid, self._name):
            self._documents.note_death(died_on["doc"], self.address.log)
        self._lost_pid = link.host["pid"]
        self._num_starts += 1
        self._link = self._documents.link = link
        silence = asyncio.ensure_future(
            until_silent(link, self._heartbeat, lambda: self._state == LOADING)
        )
        try:
            if not self._reconnect_now:
                self._load_and_open(link)
                await asyncio.wait({link.closed, silence}, return_when=asyncio.FIRST_COMPLETED)
                if not link.closed.done():
                    link.reason = f"the engine host (process {self._lost_pid}) did not answer"
                    if is_stopped(link):
                        self._lost_pid = None  # no document is to blame
                    if not await end_host(link):
                        link.reason += "; end that process"
            return link.reason
        finally:
            silence.cancel()
            self._link = self._documents.link = self._load_error = None
            link.close()

    def _load_and_open(self, link: Link) -> None:
        self._load_error = None
        self._set_state(LOADING, f"loading model {self._settings.model}")

        def on_progress(_: str, fields: dict[str, Any]) -> None:
            if self._state == LOADING:
                self._set_state(LOADING, fields["what"], fields["percent"])

        self._latest_load = link.request("load", {"model": model_name(self._settings)}, on_progress)
        self._latest_load.add_done_callback(lambda load: self._note_loaded(load))
        self._documents.send_all()

    def _note_loaded(self, load: asyncio.Future[Any]) -> None:
        error = None if load.cancelled() else load.exception()
        if load is not self._latest_load or isinstance(error, HostUnavailable):
            return
        if isinstance(error, EngineError):
            self._load_error = error
            self._set_state(FAILED, str(error))
        else:
            self._set_state(READY, "ready", 100)

    async def _until_ready(self) -> Link:
        while self._state in (STARTING, LOADING):
            await self._changed.wait()
        if self._state != READY or self._link is None:
            raise self._load_error or HostUnavailable(self._reason)
        return self._link

    def _set_state(self, state: str, what: str, percent: int = 0) -> None:
        self._state, self._reason = state, what
        self._wake()
        self._on_change(state, what, percent)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _opening(settings: Settings) -> tuple[str, str | None, str]:
    return settings.model, settings.layout, settings.policy
