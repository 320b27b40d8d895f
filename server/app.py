"""The language server: what each LSP message does. Handlers parse, submit and return."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from ..engine.wire.config import Completion, CompletionParams
from ..engine.wire.errors import HostUnavailable, WarmingUp
from .activity import Focus, TooEarly
from .answers import OnText
from .client_settings import ClientSettings
from .completions import Answer, Completions
from .documents import UTF16, Document, Limits, Position
from .event_notes import EventNotes
from .events import log_path
from .lsp_items import (
    as_change,
    as_position,
    as_selected,
    asks_for_refresh,
    completion_list,
    inline_items,
    path_of,
)
from .messages import REFRESH, register
from .nearby import OtherFiles
from .reports import Reports
from .rpc import UNKNOWN_VERSION, Malformed, Protocol, guarded, tolerant_converter
from .secrets import EngineTexts
from .settings import Settings, from_options

if TYPE_CHECKING:
    from .engine_client import EngineClient

log = logging.getLogger(__name__)

# A model may go on behind anything. Editors ask by themselves inside words at the most; Neovim's
# menu asks behind these characters only.
_TRIGGER_CHARACTERS = ["\n", "\t", *map(chr, range(ord(" "), ord("~") + 1))]
# The engine waits so long for the settings that the client was asked for.
_SETTINGS_SECONDS = 2.0
# vscode-languageclient before 10 sends 0 when the user asked.
_INVOKED = (types.InlineCompletionTriggerKind.Invoked, 0)


class KeyturnServer(LanguageServer):
    """One client's language server; the model lives in the engine host, shared by all servers.

    Args:
        engine: speaks to the engine host.

    Attributes:
        handle: handles one message from the client, given its body; `leave`: its `exit`.
        events: what becomes of suggestions.
        reports: what the server says of itself.
        others: chooses what is shown of other files.
    """

    protocol: Protocol  # type: ignore[assignment] - pygls makes what it is told to

    def __init__(self, engine: EngineClient) -> None:
        """Register the handlers; nothing is started before `initialized`."""
        super().__init__(
            "keyturn",
            version("keyturn"),
            protocol_cls=Protocol,
            converter_factory=tolerant_converter,
        )
        self.handle, self.leave = self.protocol.handle, self.protocol.leave
        self.engine = engine
        self.settings = Settings()
        self.documents: dict[str, Document] = {}
        self._base_settings = Settings()
        self._encoding = UTF16
        self._lost_at: tuple[str, int, int] | None = None  # the engine, during an automatic request
        self._focus = Focus(self._show)
        self._too_early = TooEarly(
            lambda *place, whole: engine.warm(*place, whole=whole),
            lambda where: self.protocol.notify(REFRESH, where),
        )
        self._completions = Completions(
            self._ask,
            self._ask_of_whole,
            self._warm,
            lambda: self.settings,
            lambda: self.engine.languages,
            self._soon_tell_summary,
        )
        self.events = EventNotes(lambda: self.settings.event_log, log_path)
        self._texts = EngineTexts(
            engine,
            lambda: self.settings.hide_secrets,
            self._path_of,
            lambda uri: uri == self._focus.uri,
        )
        self.others = OtherFiles(
            self.documents,
            self._workspace_folders,
            lambda: self.settings.other_files,
            lambda: self.settings.hide_secrets,
            lambda uri, chunks: engine.show_others(uri, chunks),
        )
        self.reports = Reports(
            self,
            engine,
            self.documents,
            self._completions,
            self._focus,
            lambda: self.settings,
            lambda: self._encoding,
        )
        self._connected = asyncio.Event()
        self._client_settings = ClientSettings(self, self._configure, self.reports.warn)
        self.protocol.on_malformed = self._on_malformed
        register(self)

    @property
    def exit_code(self) -> int | None:
        """The exit code once the client said `exit`."""
        return self.protocol.exit_code

    async def close(self) -> None:
        """Let go of the engine host, which stays for others."""
        self.events.close()
        await self.engine.stop()

    def report_server_error(self, error: Exception, source: object) -> None:
        """Log; pygls would pop up a window."""
        log.error("%s: %s", getattr(source, "__name__", source), error, exc_info=error)

    # Life of the server.

    def start(self, params: types.InitializeParams) -> None:
        """Take the client's settings and abilities; nothing here takes time."""
        encoding = self.workspace.position_encoding
        self._encoding = str(getattr(encoding, "value", encoding))
        self._base_settings, warnings = from_options(params.initialization_options)
        self.settings = self._base_settings
        self.reports.warn(warnings)
        self._too_early.can_ask = asks_for_refresh(params.capabilities)
        documents = params.capabilities.text_document
        has_inline = documents is not None and documents.inline_completion is not None
        wanted = self.settings.completion_items
        if wanted == "always" or (wanted == "auto" and not has_inline):
            options = types.CompletionOptions(trigger_characters=_TRIGGER_CHARACTERS)
            self.feature(types.TEXT_DOCUMENT_COMPLETION, options)(guarded(self._menu, None))

    def connect(self) -> None:
        """Start or find the engine host, in the background, once the settings are known."""
        if self._client_settings.begin():
            asyncio.get_running_loop().call_later(_SETTINGS_SECONDS, self._start_engine)
        else:
            self._start_engine()

    def _start_engine(self) -> None:
        if self._connected.is_set():
            return
        self.engine.start(
            self.settings, on_change=self.reports.engine_changed, text_of=self._text_of
        )
        self._connected.set()
        for document in self.documents.values():
            if document.refusal is None:
                self._submit_text(document)

    def reconfigure(self, params: types.DidChangeConfigurationParams) -> None:
        """Take new settings, or ask for them when the client says only that they changed."""
        self._client_settings.changed(params.settings)

    def _configure(self, options: object) -> None:
        """Use settings; the documents are opened anew when the engine needs that."""
        before = self.settings
        self.settings, warnings = from_options(options, self._base_settings)
        self.reports.warn(warnings)
        if not self._connected.is_set():
            self._start_engine()
        elif self.settings != before:
            self.engine.configure(self.settings)
        if self.settings != before:
            self._completions.reconfigured()
            self.others.reconfigured()
            for document in self.documents.values():
                document.limit(self._limits())
                if self.settings.hide_secrets != before.hide_secrets:
                    self._submit_text(document)

    # Documents.

    def open(self, params: types.DidOpenTextDocumentParams) -> None:
        """Hold a document's text and let the engine warm its cache."""
        item = params.text_document
        document = Document(
            item.uri, item.version, item.text, self._encoding, self._limits(), item.language_id
        )
        self.documents[item.uri] = document
        self._too_early.forget(item.uri)
        self._completions.edited(item.uri, None)
        self.events.edited(item.uri, None)
        self._submit_text(document)
        self._focus.perhaps_at(item.uri)
        self.others.opened()

    def change(self, params: types.DidChangeTextDocumentParams) -> None:
        """Apply changes and send them on as code-point edits."""
        document = self.documents.get(params.text_document.uri)
        if document is None:
            log.warning("change of %s, which is not open", params.text_document.uri)
            return
        was_refused = document.refusal is not None
        base, before = document.version, document.text
        changes = [as_change(item) for item in params.content_changes]
        version = params.text_document.version
        edits = document.change(changes, base + 1 if version == UNKNOWN_VERSION else version)
        self._completions.edited(document.uri, edits, before)
        self.events.edited(document.uri, edits)
        if edits is None or was_refused or document.refusal is not None:
            self._submit_text(document, was_refused=was_refused)
        else:
            hidden = self._texts.hidden(document.uri, edits)
            if hidden is not None:
                self.engine.edit(document.uri, base, document.version, hidden)
            if edits and self.settings.other_files:
                self.others.at(document.uri, edits[-1].start + len(edits[-1].text))
        self._focus.perhaps_at(document.uri)

    def close_document(self, params: types.DidCloseTextDocumentParams) -> None:
        """Forget a document."""
        uri = params.text_document.uri
        self.documents.pop(uri, None)
        self._too_early.forget(uri)
        self._completions.closed(uri)
        self.events.closed(uri)
        self.others.closed(uri)
        self._focus.closed(uri)
        self._texts.close(uri)

    def focus(self, params: object) -> None:
        """Warm the document the user looks at, and heal no longer the one before."""
        document = self._named(params)
        if document is not None:
            self._focus.at(document.uri)

    def follow_cursor(self, params: object) -> None:
        """Warm the place the cursor has moved to (`keyturn/cursor`)."""
        document = self._named(params)
        at = params.get("position") if isinstance(params, dict) else None
        if document is None or document.refusal or not isinstance(at, dict):
            return
        line, character = at.get("line"), at.get("character")
        if isinstance(line, int) and isinstance(character, int):
            offset = document.offset(Position(line, character))
            self._warm(document, offset)
            if self.settings.other_files:
                self.others.at(document.uri, offset)

    def pause(self, params: object) -> None:
        """Suggest nothing in a document, or anywhere, or again (`keyturn/pause`)."""
        if isinstance(params, dict) and isinstance(paused := params.get("paused"), bool):
            document = self._named(params)
            if document is not None or "textDocument" not in params:
                self._completions.pause(document and document.uri, paused)
                self._soon_tell_summary()

    async def restart(self, _: object) -> dict[str, Any]:
        """Start the engine host anew (`keyturn/restart`)."""
        await self.engine.restart()
        return self.reports.status()

    def _named(self, params: object) -> Document | None:
        identifier = params.get("textDocument") if isinstance(params, dict) else None
        uri = identifier.get("uri") if isinstance(identifier, dict) else None
        return self.documents.get(uri) if isinstance(uri, str) else None

    def _show(self, uri: str, visible: bool) -> None:
        if uri in self.documents:
            self.engine.focus(uri, visible=visible)

    def _submit_text(self, document: Document, was_refused: bool = False) -> None:
        if document.refusal is None:
            self._texts.submit(document)
            return
        self._texts.close(document.uri)
        if not was_refused:
            self.reports.warn([f"no completions in {document.uri}: {document.refusal}"])
            self.reports.tell_status()

    def _path_of(self, document: Document) -> str:
        return path_of(document.uri, self._workspace_folders(), document.language_id)

    def _workspace_folders(self) -> list[str]:
        return [*self.workspace.folders] or [self.workspace.root_uri or ""]

    def _limits(self) -> Limits:
        return Limits(self.settings.max_document_bytes, self.settings.max_line_chars)

    # Requests.

    async def inline(
        self, params: types.InlineCompletionParams
    ) -> list[types.InlineCompletionItem]:
        """Answer textDocument/inlineCompletion."""
        document = self.documents.get(params.text_document.uri)
        if document is None:
            return []
        offset = document.offset(as_position(params.position))
        invoked = params.context.trigger_kind in _INVOKED
        if self._too_early.was_told(document, offset):
            invoked = False  # VS Code only asks again as if the user had asked
        selected = params.context.selected_completion_info
        answer = await self._completions.complete(
            document,
            offset,
            invoked=invoked,
            selected=selected and as_selected(document, selected),
        )
        name = self.events.name(answer, document, offset, invoked=invoked)
        return inline_items(answer, document, name)

    async def _menu(self, params: types.CompletionParams) -> types.CompletionList | None:
        document = self.documents.get(params.text_document.uri)
        if document is None:
            return None
        offset = document.offset(as_position(params.position))
        context = params.context
        # The user opened the menu, or typed the letter of a word: no trigger character was typed.
        invoked = (
            context is not None
            and context.trigger_kind == types.CompletionTriggerKind.Invoked
            and not context.trigger_character
        )
        answer: Answer = await self._completions.complete(document, offset, invoked=invoked)
        name = self.events.name(answer, document, offset, invoked=invoked)
        return completion_list(answer, document, name)

    async def _ask(
        self,
        document: Document,
        offset: int,
        params: CompletionParams,
        invoked: bool,
        on_text: OnText | None,
    ) -> Completion:
        self._too_early.forget(document.uri)
        version = document.version  # what is typed while this waits is not what `offset` is of
        if self.settings.other_files:
            self.others.at(document.uri, offset)
        await self._connected.wait()
        await self._texts.sent(document.uri)
        self._focus.at(document.uri)
        wait_ms = None if invoked else self.settings.cold_wait_ms or None
        place = (document.uri, version, offset, params)
        try:
            completion = await self.engine.complete(
                *place, invoked=invoked, wait_ms=wait_ms, on_text=on_text
            )
        except WarmingUp:
            self._too_early.note(document, offset, version, whole=False)
            raise
        except HostUnavailable:  # another is on its way; what brings it down is not asked twice
            lost_at, self._lost_at = self._lost_at, place[:3]
            if not invoked and lost_at != self._lost_at:
                self._too_early.note(document, offset, version, whole=False)
            raise
        return self._texts.offered(document.uri, completion)

    async def _ask_of_whole(
        self, document: Document, version: int, offset: int, params: CompletionParams
    ) -> Completion:
        """Ask again, of the whole window: by the client's next request if it sends one, else now.

        Args:
            document: the text as it is now.
            version: the one that `offset` is of.
            offset: the cursor.
            params: what was asked for.

        Raises:
            WarmingUp: it is told to when that is there, or it was not in time.
        """
        wait_ms = self.settings.cold_wait_ms or None
        if self._too_early.can_ask:
            self._too_early.note(document, offset, version, whole=True)
        else:  # it asks no more before the next key
            warm = self.engine.warm(document.uri, version, offset, whole=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(warm, wait_ms and wait_ms / 1000)
                completion = await self.engine.complete(
                    document.uri, version, offset, params, invoked=False, wait_ms=wait_ms
                )
                return self._texts.offered(document.uri, completion)
        raise WarmingUp("warming up: the model is not sure before it has seen more")

    def _warm(self, document: Document, offset: int) -> None:
        self._focus.at(document.uri)
        self.engine.focus(document.uri, cursor=offset)

    def _text_of(self, uri: str) -> str | None:
        document = self.documents.get(uri)
        return None if document is None or document.refusal else self._texts.held(document)

    def _soon_tell_summary(self) -> None:
        """Tell what a status bar says, behind the request that changes it."""
        asyncio.get_running_loop().call_soon(self.reports.tell_summary)

    def _on_malformed(self, malformed: Malformed) -> None:
        """Set a document aside when one of its changes could not be read: its text is lost."""
        document = self._named(malformed.params)
        if malformed.method == types.TEXT_DOCUMENT_DID_CHANGE and document is not None:
            document.lose(f"a change could not be read ({malformed.message})")
            self._completions.edited(document.uri, None)
            self.events.edited(document.uri, None)
            self._submit_text(document)
