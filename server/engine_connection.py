"""The connection to the engine host, kept for as long as the language server lives.

A lost host is started again, with back-off. Used from one event loop; no torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engine.wire.address import Address, default_address
from ..engine.wire.errors import EngineError, HostUnavailable
from .engine_link import Link, connect
from .heartbeat import Heartbeat, end_host, is_stopped, until_silent
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

OnChange = Callable[[str, str, int], None]


class EngineConnection:
    """Starts or finds the host, has it load the model, and does so again when it is lost.

    Args:
        command: starts a host; None is the real one.
        address: where the host is; None is this user's own place for this installation.
        heartbeat: when a host that does not answer is given up.
        on_loading: called when a host is there that knows no document yet.
        on_death: called with the document that the host before died on.

    Attributes:
        settings: what the engine is told.
        link: to the host; None while there is none.
        languages: what the loaded model was trained on, as LSP identifiers; empty if it does not
            say.
    """

    def __init__(
        self,
        command: Sequence[str] | None,
        address: Address | None,
        heartbeat: Heartbeat,
        on_loading: Callable[[], None],
        on_death: Callable[[str], None],
    ) -> None:
        """Nothing happens before `start`."""
        self.address = address or default_address()
        self.settings = Settings()
        self.link: Link | None = None
        self.languages: tuple[str, ...] = ()
        self._command = command
        self._heartbeat = heartbeat
        self._on_loading = on_loading
        self._on_death = on_death
        self._on_change: OnChange = lambda *_: None
        self._name = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._state, self._reason, self._percent = STOPPED, "not started yet", 0
        self._load_error: EngineError | None = None
        self._latest_load: asyncio.Future[Any] | None = None
        self._changed = asyncio.Event()
        self._reconnect_now = False
        self._num_starts = 0
        self._lost_pid: int | None = None

    def start(self, settings: Settings, on_change: OnChange) -> None:
        """Connect in the background, and stay connected; `on_change` as in `EngineClient`."""
        self.settings, self._on_change = settings, on_change
        self._set_state(STARTING, "the engine is starting")
        self._task = asyncio.ensure_future(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect; the host stays for others."""
        link = self.link
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task} if link is None else {self._task, link.closed})
        self._state, self._reason = STOPPED, "the server is ending"
        self._wake()

    def configure(self, settings: Settings) -> None:
        """Take other settings; the documents are opened anew when the engine needs that."""
        before, self.settings = self.settings, settings
        if self.link is None or settings.engine_config() != before.engine_config():
            self._reconnect_now = True
            if self.link is not None:
                self.link.close()
            self._set_state(STARTING, "the engine settings have changed")
        elif _opening(settings) != _opening(before):
            self._load_and_open(self.link)
        elif settings.adapter != before.adapter:
            self._load(self.link)  # documents stay open, and what is computed of them

    async def restart(self) -> None:
        """End the host and start another, on which the documents are opened anew."""
        self._reconnect_now = True
        if (link := self.link) is not None:
            self._lost_pid = None  # no document is to blame
            await end_host(link)
            link.close()
        self._set_state(STARTING, "the engine is started anew")

    async def ready(self) -> Link:
        """Return the link once the model is loaded.

        Raises:
            HostUnavailable: there is no host.
            EngineError: the model cannot be loaded.
        """
        while self._state in (STARTING, LOADING):
            await self._changed.wait()
        if self._state != READY or self.link is None:
            raise self._load_error or HostUnavailable(self._reason)
        return self.link

    async def host_status(self) -> dict[str, Any]:
        """Return what the host says of itself, its model loaded or not.

        Raises:
            HostUnavailable: there is none.
        """
        while self.link is None and self._state in (STARTING, LOADING):
            await self._changed.wait()
        if self.link is None:
            raise HostUnavailable(self._reason)
        return await self.link.request("status", {})

    def status(self) -> dict[str, Any]:
        """Return how things stand here, as plain data; waits for nothing."""
        host = self.link.host if self.link is not None else {}
        status: dict[str, Any] = {
            "state": self._state,
            "reason": None if self._state == READY else self._reason,
            "percent": self._percent,
            "host_pid": host.get("pid"),
            "num_restarts": max(0, self._num_starts - 1),
            "socket": str(self.address.socket),
            "log": str(self.address.log),
        }
        if self.link is not None:
            wanted, real = asdict(self.settings.engine_config()), host["engine"]
            differing = [f"{name} = {real[name]}" for name in wanted if wanted[name] != real[name]]
            if differing:
                status["note"] = (
                    f"another editor window started the engine with {', '.join(differing)}; "
                    "close that one for these settings to take effect"
                )
        return status

    async def _stay_connected(self) -> None:
        num_failures = 0
        loop = asyncio.get_running_loop()
        while True:
            self._reconnect_now = False
            settings = self.settings
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
            self._on_death(died_on["doc"])
        self._lost_pid = link.host["pid"]
        self._num_starts += 1
        self.link = link
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
            self.link = self._load_error = None
            link.close()

    def _load_and_open(self, link: Link) -> None:
        self._load(link)
        self._on_loading()

    def _load(self, link: Link) -> None:
        self._load_error = None
        self.languages = ()
        self._set_state(LOADING, f"loading model {self.settings.model}")

        def on_progress(_: str, fields: dict[str, Any]) -> None:
            if self._state == LOADING:
                self._set_state(LOADING, fields["what"], fields["percent"])

        wanted = {"model": model_name(self.settings), "adapter": adapter_path(self.settings)}
        self._latest_load = link.request("load", wanted, on_progress)
        self._latest_load.add_done_callback(lambda load: self._note_loaded(load))

    def _note_loaded(self, load: asyncio.Future[Any]) -> None:
        error = None if load.cancelled() else load.exception()
        if load is not self._latest_load or isinstance(error, HostUnavailable):
            return
        if isinstance(error, EngineError):
            self._load_error = error
            self._set_state(FAILED, str(error))
        else:
            self.languages = tuple(load.result()["languages"])
            self._set_state(READY, "ready", 100)

    def _set_state(self, state: str, what: str, percent: int = 0) -> None:
        self._state, self._reason, self._percent = state, what, percent
        self._wake()
        self._on_change(state, what, percent)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def model_name(settings: Settings) -> str:
    """Return the model's name as the host, which runs in another folder, understands it."""
    path = Path(settings.model)
    is_path = path.suffix == ".gguf" or len(path.parts) > 1
    return str(path.absolute()) if is_path and path.exists() else settings.model


def adapter_path(settings: Settings) -> str | None:
    """Return the adapter's folder as the host understands it."""
    adapter = settings.adapter
    return None if adapter is None else str(Path(adapter).expanduser().absolute())


def _opening(settings: Settings) -> tuple[str, str | None, str]:
    return settings.model, settings.layout, settings.policy
