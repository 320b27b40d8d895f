"""Messages between a server and the engine host: framing, limits and shapes. No torch here.

A message is a 4-byte big-endian length and a msgpack map. Requests are {"id", "method", "params"},
replies {"id", "result"} or {"id", "error": {"code", "message"}}, events {"event", "params"}.
"""

from __future__ import annotations

import asyncio
import dataclasses
import struct
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from .errors import BadRequest, EngineError, from_code

PROTOCOL_VERSION = 8

# A document of the largest size the server accepts by default (10 MB) fits several times over,
# and a wrong length read from garbage cannot make either side allocate gigabytes.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Before the handshake nobody has a reason to send more than that.
MAX_HELLO_BYTES = 64 * 1024

_LENGTH = struct.Struct(">I")
_OPTIONAL_INT = (int, type(None))
_OPTIONAL_NUMBER = (int, float, type(None))

# Parameters of each method, with the types they may have. What each one does:
#   hello     identify; always first. `client` names one server for as long as it lives, `engine`
#             is an EngineConfig, or None to take the host as it is: such a guest configures nothing
#             and keeps no idle host alive. Result: pid, the EngineConfig in force (None: there is
#             none yet), and what the host before this one died on (pid, client, doc; or None).
#   ping      answered at once by the thread that reads the socket, whatever the engine does.
#   load      load a model, if it is not, and serve that adapter beside it; "progress" events, then
#             a reply when it is there.
#   open      hold a document, or hold it anew. `cursor` is where a completion is expected.
#   edit      [start, end, text] in code points, each in the text after the one before it; turns
#             version `base` into `version`, else the reply is version-mismatch.
#   replace   the whole text.
#   focus     what the user looks at is healed while idle.
#   others    [path, text] of other files, to be shown from the next idle time on, in the place of
#             those before.
#   warm      a reply when the cache is there for a completion at `cursor`, of the whole window if
#             `whole`, or the text has changed ("cancelled").
#   complete  `params` is CompletionParams. If `stream`, "text" events with each piece of the text
#             as it comes and its `probability`, then a reply with a Completion. If the cache is not
#             there `wait_ms` after it came, it is answered with "warming-up", and warmed on.
#   complete_file
#             complete in a text that comes along. A session is kept for the path a while, for the
#             next request; one of any client that has the same file and text is used. All rows are
#             fresh first. "progress" events and, if `stream`, "text" events with each piece of the
#             text and its `start` in it (the text begins anew where more urgent work came first),
#             then a reply with a Completion.
#   cancel    end the request with id `request`; that request is answered with code "cancelled".
METHODS: dict[str, dict[str, tuple[type, ...]]] = {
    "hello": {
        "protocol": (int,),
        "package": (str,),
        "install": (str,),
        "token": (str,),
        "client": (str,),
        "engine": (dict, type(None)),
    },
    "ping": {},
    "load": {"model": (str,), "adapter": (str, type(None))},
    "open": {
        "doc": (str,),
        "path": (str,),
        "text": (str,),
        "version": (int,),
        "model": (str,),
        "policy": (str,),
        "layout": (str, type(None)),
        "cursor": _OPTIONAL_INT,
        "visible": (bool,),
    },
    "edit": {"doc": (str,), "base": (int,), "version": (int,), "edits": (list,)},
    "replace": {"doc": (str,), "version": (int,), "text": (str,)},
    "focus": {"doc": (str,), "visible": (bool,), "cursor": _OPTIONAL_INT},
    "others": {"doc": (str,), "others": (list,)},
    "warm": {"doc": (str,), "version": (int,), "cursor": (int,), "whole": (bool,)},
    "complete": {
        "doc": (str,),
        "version": (int,),
        "offset": (int,),
        "params": (dict,),
        "invoked": (bool,),
        "stream": (bool,),
        "wait_ms": _OPTIONAL_NUMBER,
    },
    "complete_file": {
        "path": (str,),
        "text": (str,),
        "offset": (int,),
        "params": (dict,),
        "model": (str,),
        "policy": (str,),
        "layout": (str, type(None)),
        "stream": (bool,),
    },
    "close": {"doc": (str,)},
    "cancel": {"request": (int,)},
    "status": {},
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its parameters present and of the right types."""

    id: int
    method: str
    params: dict[str, Any]


def request(request_id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a request."""
    return {"id": request_id, "method": method, "params": params}


def reply(request_id: int | None, result: object) -> dict[str, Any]:
    """Return the reply to a request: its result, or the EngineError it ended with.

    The id is None when the request was too broken to have one.
    """
    if isinstance(result, EngineError):
        return {"id": request_id, "error": {"code": result.code, "message": str(result)}}
    return {"id": request_id, "result": result}


def event(name: str, **params: object) -> dict[str, Any]:
    """Return the message of an event."""
    return {"event": name, "params": params}


def error_of(message: dict[str, Any]) -> EngineError | None:
    """Return the error a reply carries, None if it carries a result."""
    if "error" not in message:
        return None
    return from_code(str(message["error"].get("code")), str(message["error"].get("message")))


def pack_body(content: object) -> bytes:
    """Return plain data as msgpack; lone surrogates survive."""
    body = msgpack.packb(content, unicode_errors="surrogatepass")
    assert body is not None, "packb returns None only when it is given a stream"
    return body


def pack(message: dict[str, Any]) -> bytes:
    """Return a message with its length in front.

    Raises:
        BadRequest: it is larger than MAX_MESSAGE_BYTES.
    """
    body = pack_body(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise BadRequest(
            f"a message of {len(body)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}; "
            "the document is too large for the engine host"
        )
    return _LENGTH.pack(len(body)) + body


async def read_message(
    reader: asyncio.StreamReader, max_bytes: int = MAX_MESSAGE_BYTES
) -> tuple[dict[str, Any], int] | None:
    """Read one message; return it and its size in bytes, None at the end of the stream.

    Raises:
        BadRequest: not a msgpack map, or longer than `max_bytes`; the stream is of no more use.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > max_bytes:
            raise BadRequest(f"a message of {length} bytes exceeds the limit of {max_bytes}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        message = msgpack.unpackb(body, unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException) as error:
        raise BadRequest(f"a message is not msgpack ({error})") from None
    if not isinstance(message, dict):
        raise BadRequest(f"a message is a {type(message).__name__}, not a map")
    return message, length


def parse_request(message: dict[str, Any]) -> Request:
    """Return the request in a message.

    Raises:
        BadRequest: unknown method, missing or ill-typed parameter; the message names it.
    """
    request_id, method, params = (message.get(key) for key in ("id", "method", "params"))
    if type(request_id) is not int:
        raise BadRequest(f"request id {request_id!r:.80} is not an integer")
    if not isinstance(method, str) or method not in METHODS:
        raise BadRequest(f"unknown method {method!r:.80}; known: {', '.join(METHODS)}")
    if not isinstance(params, dict):
        raise BadRequest(f"params of {method} are not a map")
    for name, types in METHODS[method].items():
        if type(params.get(name)) not in types:
            wanted = " or ".join(kind.__name__ for kind in types)
            raise BadRequest(f"{method}.{name} = {params.get(name)!r:.80} is not of type {wanted}")
    if method == "edit":
        for edit in params["edits"]:
            if not isinstance(edit, list) or [type(part) for part in edit] != [int, int, str]:
                raise BadRequest(f"edit.edits holds {edit!r:.80}, not [start, end, text]")
    if method == "others":
        for other in params["others"]:
            if not isinstance(other, list) or [type(part) for part in other] != [str, str]:
                raise BadRequest(f"others.others holds {other!r:.80}, not [path, text]")
    return Request(request_id, method, params)


Plain = TypeVar("Plain")


def from_plain(kind: type[Plain], values: dict[str, Any]) -> Plain:
    """Rebuild a flat dataclass (EngineConfig, CompletionParams, Completion) from its `asdict`.

    Raises:
        BadRequest: a field is missing, unknown or of another type.
    """
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if values.keys() != names:
        raise BadRequest(f"{kind.__name__} has fields {sorted(names)}, not {sorted(values)}")
    rebuilt = {name: _rebuilt(kind, name, hints[name], values[name]) for name in names}
    return kind(**rebuilt)


def _rebuilt(kind: type, name: str, hint: Any, value: object) -> object:  # noqa: ANN401 - a type
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, list | tuple) and all(type(part) is item for part in value):
            return tuple(value)
    elif hint is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    elif type(value) in (typing.get_args(hint) or (hint,)):  # one of a union, or the type itself
        return value
    raise BadRequest(f"{kind.__name__}.{name} = {value!r:.80} is not of type {hint}")
