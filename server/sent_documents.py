"""The documents an engine host is told of, in order; what is lost on the way is sent as a whole.

Texts are not kept here: the language server has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.wire.errors import BadRequest, HostUnavailable, VersionMismatch
from .engine_link import Link
from .settings import Settings

log = logging.getLogger(__name__)

_MAX_DEATHS = 2

TextOf = Callable[[str], str | None]


@dataclass
class SentDocument:
    """One open document.

    Attributes:
        path: its file name.
        version: of its text here.
        cursor: where a completion is expected, None if not known.
        visible: somebody looks at it.
        num_deaths: hosts that died on it.
        refusal: why it is kept from the host.
        is_mending: its whole text is under way after a version mismatch.
    """

    path: str
    version: int
    cursor: int | None
    visible: bool
    num_deaths: int = 0
    refusal: str | None = None
    is_mending: bool = False


class SentDocuments:
    """All open documents of one server, and the link to which their changes go.

    Args:
        settings: model, layout and policy of the documents.
        text_of: returns a document's text as it is now, None if there is none any more.

    Attributes:
        link: None while there is no host; then changes are only noted.
    """

    def __init__(self, settings: Settings, text_of: TextOf) -> None:
        """Start with none."""
        self.settings = settings
        self.link: Link | None = None
        self._text_of = text_of
        self._documents: dict[str, SentDocument] = {}

    def get(self, doc: str) -> SentDocument | None:
        """Return an open document."""
        return self._documents.get(doc)

    def open(
        self, doc: str, version: int, text: str, path: str, cursor: int | None, visible: bool
    ) -> None:
        """Open a document, or give an open one a whole new text."""
        held = self._documents.get(doc)
        if held is None:
            self._documents[doc] = SentDocument(path, version, cursor, visible)
            self._send_open(doc, text)
        else:
            held.version, held.cursor = version, cursor
            self._post(doc, "replace", version=version, text=text)

    def edit(
        self, doc: str, base: int, version: int, edits: Sequence[tuple[int, int, str]]
    ) -> None:
        """Turn version `base` into `version`; each edit is in the text after the one before it."""
        held = self._documents.get(doc)
        if held is not None:
            # The host moves its cursor with the text; after a restart it is not known.
            held.version, held.cursor = version, None
            plain = [[int(start), int(end), text] for start, end, text in edits]
            self._post(doc, "edit", base=base, version=version, edits=plain)

    def focus(self, doc: str, visible: bool, cursor: int | None) -> None:
        """Say what is looked at, and where."""
        held = self._documents.get(doc)
        if held is not None:
            held.visible = visible
            held.cursor = held.cursor if cursor is None else cursor
            self._post(doc, "focus", visible=visible, cursor=cursor)

    def close(self, doc: str) -> None:
        """Forget a document."""
        if doc in self._documents:
            self._post(doc, "close")
            del self._documents[doc]

    def send_all(self) -> None:
        """Open all documents in the host anew."""
        for doc in list(self._documents):
            self._with_text(doc, self._send_open)

    def mend(self, doc: str) -> None:
        """Send a whole text because the host has another version; once for all that say so."""
        held = self._documents[doc]
        if not held.is_mending:
            held.is_mending = True
            self._with_text(
                doc,
                lambda doc, text: self._post(doc, "replace", version=held.version, text=text),
            )

    def note_death(self, doc: str, log_file: Path) -> None:
        """Note that a host died while it worked on a document; two deaths set it aside."""
        held = self._documents.get(doc)
        if held is None:
            return
        held.num_deaths += 1
        log.warning("the engine died on %s (%d)", doc, held.num_deaths)
        if held.num_deaths >= _MAX_DEATHS:
            held.refusal = (
                f"the engine died {held.num_deaths} times while working on {held.path}: "
                f"close and open it to try again (log: {log_file})"
            )

    def refusals(self) -> dict[str, str]:
        """Return the documents kept from the host, and why."""
        return {doc: held.refusal for doc, held in self._documents.items() if held.refusal}

    def _with_text(self, doc: str, send: Callable[[str, str], None]) -> None:
        text = self._text_of(doc)
        if text is None:
            self.close(doc)
        else:
            send(doc, text)

    def _send_open(self, doc: str, text: str) -> None:
        held, settings = self._documents[doc], self.settings
        held.is_mending = False
        fits = held.cursor is not None and held.cursor <= len(text)
        self._post(
            doc,
            "open",
            path=held.path,
            text=text,
            version=held.version,
            cursor=held.cursor if fits else None,
            visible=held.visible,
            model=model_name(settings),
            policy=settings.policy,
            layout=settings.layout,
        )

    def _post(self, doc: str, method: str, **params: object) -> None:
        held = self._documents[doc]
        if self.link is None or held.refusal is not None:
            return
        try:
            reply = self.link.request(method, {"doc": doc, **params})
        except BadRequest as error:
            held.refusal = str(error)
            log.warning("%s: %s", doc, error)
            return
        reply.add_done_callback(lambda reply: self._note_reply(doc, held, method, reply))

    def _note_reply(
        self, doc: str, held: SentDocument, method: str, reply: asyncio.Future[Any]
    ) -> None:
        error = None if reply.cancelled() else reply.exception()
        if method == "replace":
            held.is_mending = False
        if error is None or isinstance(error, HostUnavailable):
            return
        if isinstance(error, VersionMismatch) and self._documents.get(doc) is held:
            self.mend(doc)
        log.warning("%s of %s: %s", method, doc, error)


def model_name(settings: Settings) -> str:
    """Return the model's name as the host, which runs in another folder, understands it."""
    path = Path(settings.model)
    is_path = path.suffix == ".gguf" or len(path.parts) > 1
    return str(path.absolute()) if is_path and path.exists() else settings.model
