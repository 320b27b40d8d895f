"""Model loading, shown in the editor as work-done progress where it can show that."""

from __future__ import annotations

import asyncio
import logging
import uuid

from lsprotocol import types
from pygls.lsp.server import LanguageServer

log = logging.getLogger(__name__)

_CREATE_SECONDS = 5


class LoadingProgress:
    """One progress bar at a time; a bar the editor refuses is simply not shown."""

    def __init__(self, server: LanguageServer) -> None:
        """Show nothing yet."""
        self._server = server
        self._token: str | None = None
        self._shown = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: tuple[str, int] = ("", 0)

    def report(self, what: str, percent: int) -> None:
        """Show what is being done; the first report opens the bar."""
        self._latest = (what, max(0, min(100, percent)))
        if self._token is None:
            self._token = str(uuid.uuid4())
            task = asyncio.ensure_future(self._open(self._token))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._shown:
            message, percentage = self._latest
            self._server.work_done_progress.report(
                self._token, types.WorkDoneProgressReport(message=message, percentage=percentage)
            )

    def end(self, message: str) -> None:
        """Close the bar if there is one."""
        if self._token is not None and self._shown:
            self._server.work_done_progress.end(
                self._token, types.WorkDoneProgressEnd(message=message)
            )
        self._token, self._shown = None, False

    async def _open(self, token: str) -> None:
        window = self._server.client_capabilities.window
        if window is None or not window.work_done_progress:
            return
        # Shielded: pygls fails on the reply when the task that awaits it was cancelled (#621).
        created = asyncio.ensure_future(self._server.work_done_progress.create_async(token))
        created.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait_for(asyncio.shield(created), _CREATE_SECONDS)
        except Exception as error:
            log.info("the editor shows no progress: %r", error)
            return
        if self._token != token:
            return
        self._shown = True
        message, percentage = self._latest
        self._server.work_done_progress.begin(
            token,
            types.WorkDoneProgressBegin(
                title="Keyturn", message=message, percentage=percentage, cancellable=False
            ),
        )
