"""The names of LSP messages and of our own, and each one's one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lsprotocol import types

from .lsp_items import DID_ACCEPT
from .rpc import guarded

STATUS = "keyturn/status"
DOCUMENTS = "keyturn/documents"
DID_FOCUS = "textDocument/didFocus"
CURSOR = "keyturn/cursor"
PAUSE = "keyturn/pause"
RESTART = "keyturn/restart"
REFRESH = "keyturn/refresh"
# As Copilot's language server calls them.
DID_SHOW = "textDocument/didShowCompletion"
DID_ACCEPT_PARTLY = "textDocument/didPartiallyAcceptCompletion"


def register(server: Any) -> None:  # noqa: ANN401 - `KeyturnServer`, whose module imports this
    """Connect each message with its one call."""

    def hear(method: str, handler: Callable[[Any], None]) -> None:
        # What it raises, `Protocol.handle` logs; pygls' notes find no room on a bound method.
        server.feature(method)(functools.partial(handler))

    def on(method: str, handler: Callable[..., Any], otherwise: object = None) -> None:
        server.feature(method)(guarded(handler, otherwise))

    on(types.INITIALIZE, server.start)
    on(types.INITIALIZED, lambda _: server.connect())
    on(types.WORKSPACE_DID_CHANGE_CONFIGURATION, server.reconfigure)
    hear(types.TEXT_DOCUMENT_DID_OPEN, server.open)
    hear(types.TEXT_DOCUMENT_DID_CHANGE, server.change)
    hear(types.TEXT_DOCUMENT_DID_SAVE, lambda _: None)
    hear(types.TEXT_DOCUMENT_DID_CLOSE, server.close_document)
    hear(DID_FOCUS, server.focus)
    hear(CURSOR, server.follow_cursor)
    hear(PAUSE, server.pause)
    on(RESTART, server.restart, {})
    hear(DID_SHOW, server.events.note_shown)
    hear(DID_ACCEPT_PARTLY, server.events.note_partly_accepted)
    server.command(DID_ACCEPT)(lambda *arguments: server.events.note_accepted(*arguments))
    on(STATUS, server.reports.answer_status, {})
    on(DOCUMENTS, lambda _: server.reports.held_documents(), [])
    on(types.EXIT, lambda _: server.protocol.leave())
    # Without options pygls does not advertise it.
    options = types.InlineCompletionOptions()
    server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, options)(guarded(server.inline, []))
