"""Answers as JSON and as events, and work that ends when the client that it is for has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...engine.wire.errors import EngineError

Result = TypeVar("Result")
SendEvent = Callable[[object], Awaitable[None]]

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Json(Response):
    """A response of one object. All of it is ASCII, so a client's lone surrogates survive."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return as_json(content)


class EventStream(Response):
    """A response of events; what fails before the first is answered with its own status.

    Args:
        produce: sends events, each what becomes JSON; cancelled when the client goes.
        refused: returns status and body for an error of `produce`.
        ends_with: what follows the last event of a stream that came to its end.
    """

    def __init__(
        self,
        produce: Callable[[SendEvent], Awaitable[None]],
        refused: Callable[[EngineError], tuple[int, object]],
        ends_with: bytes,
    ) -> None:
        """Nothing is produced before the response is sent."""
        self._produce = produce
        self._refused = refused
        self._ends_with = ends_with
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        has_begun = False

        async def send_event(event: object) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            body = b"data: " + as_json(event) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            await unless_gone(receive, self._produce(send_event))
            await send({"type": "http.response.body", "body": self._ends_with})
        except EngineError as error:
            status, answer = self._refused(error)
            if has_begun:  # the status is out: clients of both interfaces read such an event
                await send_event(answer)
                await send({"type": "http.response.body", "body": b""})
            else:
                await Json(answer, status)(scope, receive, send)
        except ClientDisconnect:
            pass


def as_json(content: object) -> bytes:
    """Return plain data as JSON without a space: llama.vim looks for `"content":"`."""
    return json.dumps(content, separators=(",", ":")).encode()


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return what comes of `work`, which is cancelled when the client goes.

    Raises:
        ClientDisconnect: it has gone.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, EngineError):
            await working  # its session is free for the next request from here on
