"""JSON-RPC on pygls, made tolerant: whatever a client sends, a request gets a reply.

Stock pygls drops a message it cannot structure (the client waits for ever), pops up a window for
errors, keeps a second copy of every document, and loses the exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import cattrs
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.protocol import JsonRPCNotification, JsonRPCRequestMessage, LanguageServerProtocol
from pygls.protocol import default_converter as pygls_converter

log = logging.getLogger(__name__)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
NOT_INITIALIZED = -32002
UNKNOWN_VERSION = -(2**31)
_LARGEST = 2**31 - 1

# Capabilities the server reads: kept when others make the whole unreadable.
_CAPABILITIES = {
    "experimental": {"keyturn": dict},
    "general": {"positionEncodings": list},
    "textDocument": {"inlineCompletion": dict},
    "window": {"workDoneProgress": bool},
    "workspace": {"configuration": bool, "didChangeConfiguration": dict},
}


def tolerant_converter() -> cattrs.Converter:
    """Return pygls' converter, where a value that an enumeration lacks stays as it came."""
    converter = pygls_converter()

    def structure(value: object, kind: type[enum.Enum]) -> object:
        try:
            return kind(value)
        except ValueError:
            return value

    for kind in vars(types).values():
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            converter.register_structure_hook(kind, structure)
    return converter


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that cannot be handled; `id` is set when the client waits for a reply."""

    id: int | str | None
    method: str
    params: object
    code: int
    message: str


class Protocol(LanguageServerProtocol):
    """pygls' language-server protocol without its traps.

    Attributes:
        exit_code: set when the client said `exit`: 0 after `shutdown`, else 1.
        on_malformed: called with a notification that could not be read.
    """

    exit_code: int | None = None
    on_malformed: Callable[[Malformed], None] | None = None
    _initialized = False

    def handle(self, body: bytes) -> None:
        """Handle one message; never raises."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            self._refuse(Malformed(None, "", None, PARSE_ERROR, f"not JSON: {error}"))
            return
        # An empty list is no message: it is refused as a whole.
        for one in message if isinstance(message, list) and message else [message]:
            try:
                structured = self.structure_message(one)
                refused = self._refusal(structured)
                if refused is not None:
                    self._refuse(refused)
                elif (hear := self._listener(structured)) is not None:
                    hear(structured.params)
                else:
                    self.handle_message(structured)
            except Exception:
                log.exception("a message was not handled")

    def structure_message(self, data: Any) -> Any:  # noqa: ANN401 - pygls' signature
        """Turn decoded JSON into a message; what cannot be becomes `Malformed`."""
        if not isinstance(data, dict) or data.get("jsonrpc") != self.VERSION:
            request_id = _request_id(data.get("id")) if isinstance(data, dict) else None
            return Malformed(request_id, "", None, INVALID_REQUEST, "not a JSON-RPC 2.0 message")
        method, params = data.get("method"), data.get("params")
        if method is None:
            return self._structure_reply(data)
        request_id = _request_id(data.get("id"))
        if not isinstance(method, str) or ("id" in data and request_id is None):
            return Malformed(request_id, str(method), params, INVALID_REQUEST, "bad method or id")
        if not self._knows(method):
            if request_id is None:
                return JsonRPCNotification(method, self.VERSION, params)
            return JsonRPCRequestMessage(request_id, method, self.VERSION, params)
        data = {**data, "params": mended(method, params)}
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            problem = f"{method}: {_cause(error)}"
        if method == types.INITIALIZE:
            log.warning("%s; only what is needed is read", problem)
            with contextlib.suppress(JsonRpcException):
                return super().structure_message({**data, "params": essentials(params)})
        return Malformed(request_id, method, params, INVALID_PARAMS, problem)

    def _listener(self, message: object) -> Callable[[Any], None] | None:
        """Return what hears a notification that pygls has no part in; None for any other."""
        method = getattr(message, "method", None)
        is_ours = method is not None and not hasattr(message, "id")
        is_ours = is_ours and method not in self.fm.builtin_features
        return self.fm.features.get(method) if is_ours else None

    def _knows(self, method: str) -> bool:
        known = method in self.fm.features or method in self.fm.builtin_features
        is_typed = self.get_message_type(method) is not None
        return is_typed and (known or method == types.CANCEL_REQUEST)

    def _structure_reply(self, data: dict[str, Any]) -> Any:  # noqa: ANN401 - pygls' signature
        """Turn a reply into a message; an unreadable one is an error, so that nobody waits."""
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            problem = {"code": INVALID_PARAMS, "message": f"unreadable reply: {_cause(error)}"}
            reply = {"jsonrpc": self.VERSION, "id": data.get("id"), "error": problem}
            return super().structure_message(reply)

    def _refusal(self, message: object) -> Malformed | None:
        """Return what is wrong with a message at this time, None if it is to be handled."""
        if isinstance(message, Malformed):
            return message
        method = getattr(message, "method", "")
        request_id = getattr(message, "id", None) if method else None
        if self._shutdown and method and method != types.EXIT:
            reason = "the server is shutting down"
            return Malformed(request_id, method, None, INVALID_REQUEST, reason)
        if not self._initialized and method not in ("", types.INITIALIZE, types.EXIT):
            reason = f"{method} before initialize"
            return Malformed(request_id, method, None, NOT_INITIALIZED, reason)
        if self._initialized and method == types.INITIALIZE:
            reason = "initialize was sent twice"
            return Malformed(request_id, method, None, INVALID_REQUEST, reason)
        self._initialized = self._initialized or method == types.INITIALIZE
        return None

    def leave(self) -> None:
        """Note that the client said `exit`."""
        self.exit_code = 0 if self._shutdown else 1

    def _refuse(self, malformed: Malformed) -> None:
        log.warning("refused: %s", malformed.message)
        if malformed.id is not None or malformed.code == PARSE_ERROR:
            # A plain dict: lsprotocol leaves an id of null out, and JSON-RPC wants it there.
            error = {"code": malformed.code, "message": malformed.message}
            self._send_data({"jsonrpc": self.VERSION, "id": malformed.id, "error": error})
        elif self.on_malformed is not None:
            self.on_malformed(malformed)

    # The handlers in app.py replace these: the server keeps the only copy of the text.
    lsp_text_document__did_open = None  # type: ignore[assignment]
    lsp_text_document__did_change = None  # type: ignore[assignment]
    lsp_text_document__did_close = None  # type: ignore[assignment]
    lsp_exit = None  # type: ignore[assignment]


def _request_id(value: object) -> int | str | None:
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _cause(error: BaseException) -> str:
    """Return the innermost cause, which names the field; the outer ones name classes."""
    while error.__cause__ is not None:
        error = error.__cause__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__


def guarded(handler: Callable[..., Any], otherwise: object) -> Callable[..., Any]:
    """Turn a handler's exception into a log line and `otherwise`; cancellation passes."""
    # Not annotated `object`: pygls passes the server to a handler whose first argument may be one.
    if asyncio.iscoroutinefunction(handler):

        async def run(params: Any) -> object:  # noqa: ANN401
            try:
                return await handler(params)
            except Exception:
                log.exception("%s failed", getattr(handler, "__name__", handler))
                return otherwise

        return run

    def call(params: Any) -> object:  # noqa: ANN401
        try:
            return handler(params)
        except Exception:
            log.exception("%s failed", getattr(handler, "__name__", handler))
            return otherwise

    return call


# What clients in the wild send amiss, put right before lsprotocol reads it: a change that cannot be
# read costs the document, and an `initialize` the whole session. Both are too much for a field that
# nobody here needs.


def mended(method: str, params: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Return `params` of `method` without the known slips; what is not known stays as it came."""
    if method == "workspace/didChangeConfiguration":
        return {"settings": None, **(params if isinstance(params, dict) else {})}
    if not isinstance(params, dict):
        return params
    if method == "initialize":
        return {**params, "rootUri": _uri(params.get("rootUri"))}
    document = params.get("textDocument")
    if method not in ("textDocument/didOpen", "textDocument/didChange"):
        return params
    if not isinstance(document, dict):
        return params
    version = _version(document.get("version"))
    if method == "textDocument/didOpen":
        language = str(document.get("languageId") or "")
        number = 0 if version == UNKNOWN_VERSION else version
        return {"textDocument": {**_text(document), "languageId": language, "version": number}}
    document = {**document, "version": version}
    changes = params.get("contentChanges")
    if isinstance(changes, list):
        changes = [_change(item) if isinstance(item, dict) else item for item in changes]
    return {"textDocument": document, "contentChanges": changes}


def essentials(params: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Return of `initialize` only what the server needs, for when the rest cannot be read."""
    if not isinstance(params, dict):
        return params
    given = params.get("capabilities")
    capabilities: dict[str, dict[str, Any]] = {}
    for group, names in _CAPABILITIES.items():
        found = given.get(group) if isinstance(given, dict) else None
        for name, kind in names.items():
            if isinstance(found, dict) and isinstance(found.get(name), kind):
                capabilities.setdefault(group, {})[name] = found[name]
    process = params.get("processId")
    return {
        "processId": process if type(process) is int else None,
        "rootUri": None,
        "capabilities": capabilities,
        "initializationOptions": params.get("initializationOptions"),
    }


def _uri(uri: object) -> str | None:
    try:
        return uri if isinstance(uri, str) and urlsplit(uri) else None
    except ValueError:
        return None


def _version(version: object) -> int:
    if type(version) is int and UNKNOWN_VERSION < version <= _LARGEST:
        return version
    return UNKNOWN_VERSION


def _change(change: dict[str, Any]) -> dict[str, Any]:
    span = change.get("range")
    kept = {key: value for key, value in _text(change).items() if key == "text"}
    return kept if span is None else {**kept, "range": _clamped(span)}


def _text(holder: dict[str, Any]) -> dict[str, Any]:
    """Leave out a text that is none, which lsprotocol would read as the word None."""
    if isinstance(holder.get("text"), str):
        return holder
    return {key: value for key, value in holder.items() if key != "text"}


def _clamped(value: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Bound the positions of a range: "to the end" may be any large number."""
    if isinstance(value, dict):
        return {key: _clamped(item) for key, item in value.items()}
    return _LARGEST if type(value) in (int, float) and value > _LARGEST else value
