"""The engine as the language server sees it: documents go out in order, completions come back.

It outlives the host: a new one is told all open documents, and what is lost on the way is sent as
a whole. A document that two hosts died on is set aside. Texts are not kept here: the language
server has them. Used from one event loop; no torch here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.wire.address import Address
from ..engine.wire.config import Completion, CompletionParams
from ..engine.wire.errors import (
    BadRequest,
    Cancelled,
    DocumentRefused,
    HostUnavailable,
    VersionMismatch,
    WarmingUp,
)
from ..engine.wire.protocol import from_plain
from .engine_connection import EngineConnection, OnChange, model_name
from .engine_link import Link
from .heartbeat import HEARTBEAT, Heartbeat
from .settings import Settings

log = logging.getLogger(__name__)

_MAX_DEATHS = 2

TextOf = Callable[[str], str | None]


@dataclass
class SentDocument:
    """One open document, as the host knows it or is about to.

    Attributes:
        path: of its file, relative to the workspace; "" if it has none.
        version: of its text here.
        cursor: where a completion is expected, None if not known.
        visible: somebody looks at it.
        num_deaths: hosts that died on it.
        refusal: why it is kept from the host.
        is_resent: its whole text is under way after a version mismatch.
        others: path and text of what is shown of other files.
    """

    path: str
    version: int
    cursor: int | None
    visible: bool
    num_deaths: int = 0
    refusal: str | None = None
    is_resent: bool = False
    others: Sequence[tuple[str, str]] = ()


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
        heartbeat: Heartbeat = HEARTBEAT,
    ) -> None:
        """Hold no document; nothing happens before `start`."""
        self._connection = EngineConnection(
            command, address, heartbeat, on_loading=self._send_all, on_death=self._note_death
        )
        self._documents: dict[str, SentDocument] = {}
        self._text_of: TextOf = lambda _: None

    @property
    def address(self) -> Address:
        """Where the host is."""
        return self._connection.address

    @property
    def languages(self) -> tuple[str, ...]:
        """What the loaded model was trained on, as LSP identifiers; empty if it does not say."""
        return self._connection.languages

    def start(self, settings: Settings, *, on_change: OnChange, text_of: TextOf) -> None:
        """Connect in the background, and stay connected.

        Args:
            settings: what the engine is told.
            on_change: receives "starting", "loading", "ready" or "failed", what is done or why
                it failed, and a percentage.
            text_of: returns the text of an open document, None if there is none any more.
        """
        self._text_of = text_of
        self._connection.start(settings, on_change)

    async def stop(self) -> None:
        """Disconnect; the host stays for others."""
        await self._connection.stop()

    def configure(self, settings: Settings) -> None:
        """Take other settings; the documents are opened anew when the engine needs that."""
        self._connection.configure(settings)

    async def restart(self) -> None:
        """End the host, which other windows share, and start another; no document is lost."""
        await self._connection.restart()

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
        sent = self._documents.get(doc)
        if sent is None:
            self._documents[doc] = SentDocument(path, version, cursor, visible)
            self._send_open(doc, text)
        else:
            sent.version, sent.cursor = version, cursor
            self._send(doc, sent, "replace", version=version, text=text)

    def edit(
        self, doc: str, base: int, version: int, edits: Sequence[tuple[int, int, str]]
    ) -> None:
        """Turn version `base` into `version`; each edit is in the text after the one before it."""
        sent = self._documents.get(doc)
        if sent is None:
            return
        # The host moves its cursor with the text; after a restart it is not known.
        sent.version, sent.cursor = version, None
        link = self._link_for(sent)
        if link is not None:
            plain = [[int(start), int(end), text] for start, end, text in edits]
            params = {"doc": doc, "base": base, "version": version, "edits": plain}
            self._follow(doc, sent, "edit", link.request("edit", params))

    def focus(self, doc: str, *, visible: bool = True, cursor: int | None = None) -> None:
        """Warm the cache around a cursor; what is not visible is not healed."""
        sent = self._documents.get(doc)
        if sent is not None:
            sent.visible = visible
            sent.cursor = sent.cursor if cursor is None else int(cursor)
            self._send(
                doc,
                sent,
                "focus",
                visible=visible,
                cursor=None if cursor is None else int(cursor),
            )

    def show_others(self, doc: str, others: Sequence[tuple[str, str]]) -> None:
        """Show lines of other files in front of a document, path and text of each."""
        sent = self._documents.get(doc)
        if sent is not None:
            sent.others = others
            self._send_others(doc, sent)

    def close(self, doc: str) -> None:
        """Forget a document."""
        sent = self._documents.pop(doc, None)
        if sent is not None:
            self._send(doc, sent, "close")

    # Questions

    async def complete(
        self,
        doc: str,
        version: int,
        offset: int,
        params: CompletionParams,
        *,
        invoked: bool,
        wait_ms: float | None = None,
        on_text: Callable[[str, float], None] | None = None,
    ) -> Completion:
        """Complete at a place; waits while the engine starts. Cancelling it stops the engine.

        Args:
            doc: an open document.
            version: of its text.
            offset: code points.
            params: how to decode.
            invoked: the user asked, and is served first.
            wait_ms: longest wait for the model and for the cache at this place; None waits for as
                long as it takes. Decoding is not counted.
            on_text: receives each piece of the text as it comes, and its probability.

        Raises:
            HostUnavailable: there is no engine, or it was lost meanwhile.
            DocumentRefused: the document was set aside.
            WarmingUp: the wait was too long; the cache is warmed all the same.
            EngineError: whatever the engine says.
        """
        sent = self._documents.get(doc)
        if sent is None:
            raise BadRequest(f"document {doc} is not open")
        now = asyncio.get_running_loop().time
        deadline = None if wait_ms is None else now() + wait_ms / 1e3
        try:
            async with asyncio.timeout_at(deadline):
                link = await self._connection.ready()
        except TimeoutError:
            raise WarmingUp("warming up: the model is being loaded") from None
        asked = {
            "doc": doc,
            "version": version,
            "offset": int(offset),
            "params": asdict(params),
            "invoked": invoked,
            "stream": on_text is not None,
        }

        def on_event(_: str, fields: dict[str, Any]) -> None:
            if on_text is not None:
                on_text(fields["text"], fields["probability"])

        for is_last in (False, True):
            self._check_current(doc, sent, version)
            try:
                sent.cursor = int(offset)
                asked["wait_ms"] = None if deadline is None else max(0.0, deadline - now()) * 1e3
                return from_plain(Completion, await link.request("complete", asked, on_event))
            except VersionMismatch:
                if is_last:
                    raise
                self._resend(doc, sent)
        raise AssertionError("not reached")

    async def warm(self, doc: str, version: int, offset: int, *, whole: bool = False) -> None:
        """Wait until the model is there and the cache is warm for a completion at a place.

        Args:
            doc: its name.
            version: of its text.
            offset: the place, in code points.
            whole: wait for the whole window, where a narrow one comes first.

        Raises:
            Cancelled: the text has changed since; a cursor that has moved does not end the wait.
            EngineError: whatever stands against it.
        """
        link = await self._connection.ready()
        sent = self._documents.get(doc)
        if sent is None:
            raise BadRequest(f"document {doc} is not open")
        self._check_current(doc, sent, version)
        sent.cursor = int(offset)
        place = {"doc": doc, "version": version, "cursor": int(offset)}
        await link.request("warm", {**place, "whole": whole})

    def _check_current(self, doc: str, sent: SentDocument, version: int) -> None:
        if sent.refusal is not None:
            raise DocumentRefused(sent.refusal)
        if sent.version != version or self._documents.get(doc) is not sent:
            raise Cancelled("the document has changed since")

    async def host_status(self) -> dict[str, Any]:
        """Return what the host says of itself.

        Raises:
            HostUnavailable: there is none.
        """
        return await self._connection.host_status()

    def status(self) -> dict[str, Any]:
        """Return how things stand here, as plain data; waits for nothing."""
        refusals = {doc: sent.refusal for doc, sent in self._documents.items() if sent.refusal}
        return {**self._connection.status(), "quarantined": refusals}

    # What goes to the host.

    def _send(self, doc: str, sent: SentDocument, method: str, **params: object) -> None:
        link = self._link_for(sent)
        if link is not None:
            self._follow(doc, sent, method, link.request(method, {"doc": doc, **params}))

    def _link_for(self, sent: SentDocument) -> Link | None:
        """Return the link to the host; None while there is none, or for a refused document."""
        return None if sent.refusal is not None else self._connection.link

    def _follow(
        self, doc: str, sent: SentDocument, method: str, reply: asyncio.Future[Any]
    ) -> None:
        error = reply.exception() if reply.done() else None
        if isinstance(error, BadRequest):  # too large to be sent
            sent.refusal = str(error)
            log.warning("%s: %s", doc, error)
            return
        reply.add_done_callback(lambda reply: self._note_reply(doc, sent, method, reply))

    def _note_reply(
        self, doc: str, sent: SentDocument, method: str, reply: asyncio.Future[Any]
    ) -> None:
        error = None if reply.cancelled() else reply.exception()
        if method == "replace":
            sent.is_resent = False
        if error is None or isinstance(error, HostUnavailable):
            return
        if isinstance(error, VersionMismatch) and self._documents.get(doc) is sent:
            self._resend(doc, sent)
        log.warning("%s of %s: %s", method, doc, error)

    def _send_all(self) -> None:
        """Open all documents in the host anew."""
        for doc in list(self._documents):
            text = self._text_of(doc)
            if text is None:
                self.close(doc)
            else:
                self._send_open(doc, text)

    def _send_open(self, doc: str, text: str) -> None:
        sent, settings = self._documents[doc], self._connection.settings
        sent.is_resent = False
        fits = sent.cursor is not None and sent.cursor <= len(text)
        self._send(
            doc,
            sent,
            "open",
            path=sent.path,
            text=text,
            version=sent.version,
            cursor=sent.cursor if fits else None,
            visible=sent.visible,
            model=model_name(settings),
            policy=settings.policy,
            layout=settings.layout,
        )
        if sent.others:
            self._send_others(doc, sent)

    def _send_others(self, doc: str, sent: SentDocument) -> None:
        self._send(doc, sent, "others", others=[[path, text] for path, text in sent.others])

    def _resend(self, doc: str, sent: SentDocument) -> None:
        """Send a whole text because the host has another version; once for all that say so."""
        if sent.is_resent:
            return
        text = self._text_of(doc)
        if text is None:
            self.close(doc)
        else:
            sent.is_resent = True
            self._send(doc, sent, "replace", version=sent.version, text=text)

    def _note_death(self, doc: str) -> None:
        """Note that a host died while it worked on a document; two deaths set it aside."""
        sent = self._documents.get(doc)
        if sent is None:
            return
        sent.num_deaths += 1
        log.warning("the engine died on %s (%d)", doc, sent.num_deaths)
        if sent.num_deaths >= _MAX_DEATHS:
            sent.refusal = (
                f"the engine died {sent.num_deaths} times while working on {sent.path or doc}: "
                f"close and open it to try again (log: {self.address.log})"
            )
