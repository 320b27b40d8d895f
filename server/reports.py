"""How things stand, for a client that asks and for one that is told: status, loading, failures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from ..engine.wire.errors import EngineError
from .activity import Focus
from .completions import Completions
from .documents import Document
from .engine_connection import TRYING_AGAIN
from .messages import STATUS
from .progress import LoadingProgress
from .settings import Settings
from .summary import summary

if TYPE_CHECKING:
    from .engine_client import EngineClient

log = logging.getLogger(__name__)


class Reports:
    """What one language server says of itself.

    Args:
        server: speaks to the client.
        engine: speaks to the engine host.
        documents: those that are open, by their URI.
        completions: decides when to ask the engine.
        focus: which document is looked at.
        settings: returns those in force.
        encoding: returns the unit of a position's character, as negotiated.
    """

    def __init__(
        self,
        server: LanguageServer,
        engine: EngineClient,
        documents: Mapping[str, Document],
        completions: Completions,
        focus: Focus,
        settings: Callable[[], Settings],
        encoding: Callable[[], str],
    ) -> None:
        """Say nothing yet."""
        self._server, self._engine = server, engine
        self._documents, self._completions, self._focus = documents, completions, focus
        self._settings, self._encoding = settings, encoding
        self._progress = LoadingProgress(server)
        self._told_failures: set[str] = set()
        self._told_summary: dict[str, Any] = {}

    # For who asks.

    async def answer_status(self, params: object) -> dict[str, Any]:
        """Answer keyturn/status; with {"host": true} the engine host is asked as well."""
        status = self.status()
        if isinstance(params, dict) and params.get("host"):
            try:
                status["host"] = await self._engine.host_status()
                status["summary"] = self._summary(status["host"])
            except EngineError as error:
                status["host"] = {"reason": str(error)}
        return status

    def status(self) -> dict[str, Any]:
        """Return what works and what does not, with reasons, as plain data; asks nobody."""
        return {
            "summary": self._summary(),
            "model": self._settings().model,
            **self._engine.status(),
            "version": self._server.version,
            "position_encoding": self._encoding(),
            "num_documents": len(self._documents),
            "refused": {
                document.uri: document.refusal
                for document in self._documents.values()
                if document.refusal is not None
            },
            "completions": self._completions.status(),
        }

    def held_documents(self) -> list[dict[str, Any]]:
        """Return what is held of each document, so that a client can compare."""
        return [
            {
                "uri": document.uri,
                "version": document.version,
                "num_chars": len(document.text),
                "sha256": hashlib.sha256(
                    document.text.encode("utf-8", "surrogatepass")
                ).hexdigest(),
            }
            for document in self._documents.values()
        ]

    def _summary(self, host: dict[str, Any] | None = None) -> dict[str, Any]:
        completions = self._completions
        return summary(
            self._engine.status(),
            is_busy=completions.is_busy,
            is_paused=completions.is_paused(self._focus.uri),
            last_reason=completions.last_reason,
            host=host,
        )

    # By itself.

    def tell_status(self) -> None:
        """Send keyturn/status."""
        self._server.protocol.notify(STATUS, self.status())

    def tell_summary(self) -> None:
        """Send the status if what a status bar says of it has changed."""
        if (now := self._summary()) != self._told_summary:
            self._told_summary = now
            self.tell_status()

    def engine_changed(self, state: str, what: str, percent: int) -> None:
        """Tell of the engine; arguments as `EngineClient.start` gives them."""
        if state == "loading":
            self._progress.report(what, percent)
            self.tell_summary()
            return
        self._progress.end(what)
        self._told_summary = self._summary()
        self.tell_status()
        if state == "failed":
            self._tell_failure(what.partition(TRYING_AGAIN)[0])

    def _tell_failure(self, reason: str) -> None:
        """Tell the user that no completions come and what to do; once for each reason."""
        if reason not in self._told_failures:
            self._told_failures.add(reason)
            remedy = "" if "; " in reason else "; keyturn doctor says what to do"
            message = f"Keyturn cannot complete: {reason}{remedy}"
            self._server.window_show_message(
                types.ShowMessageParams(type=types.MessageType.Error, message=message)
            )

    def warn(self, messages: list[str]) -> None:
        """Write warnings to the client's log and to ours."""
        for message in messages:
            log.warning("%s", message)
            self._server.window_log_message(
                types.LogMessageParams(type=types.MessageType.Warning, message=message)
            )
