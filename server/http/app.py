"""The HTTP server: its paths, and how an answer or a refusal goes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ...engine.syntax.languages import PLAIN_TEXT
from ...engine.wire.config import Completion
from ...engine.wire.errors import (
    BadPosition,
    BadRequest,
    Cancelled,
    ContextTooLong,
    DocumentRefused,
    EngineError,
    HostUnavailable,
    ModelLoadError,
    ModelNotFound,
    OutOfMemory,
    WarmingUp,
)
from ..documents import UTF32, Document, Limits
from ..engine_client import EngineClient
from ..secrets import masked_in_slices, without_placeholders
from ..settings import Settings
from .answers import EventStream, Json, SendEvent, unless_gone
from .dialect import Dialect, Piece
from .fields import Asked, object_of
from .guard import refusal
from .llama_api import NOTHING, Infill
from .openai_api import OpenAI, models
from .text_sessions import TextSessions

log = logging.getLogger(__name__)

# JSON's escapes take up to three bytes for one of UTF-8, and other files' texts come beside it.
_BODY_FACTOR, _BODY_MARGIN = 4, 1_000_000
_CLIENT_GONE = 499
_STATUS: dict[type[EngineError], int] = {
    BadRequest: 400,
    BadPosition: 400,
    ContextTooLong: 400,
    DocumentRefused: 400,
    Cancelled: 503,
    HostUnavailable: 503,
    ModelLoadError: 503,
    ModelNotFound: 503,
    OutOfMemory: 503,
    WarmingUp: 503,
}


class HttpServer:
    """What every request of one server shares.

    Args:
        engine: speaks to the engine host; started and stopped with the application.
        settings: of the engine, and for what a request leaves out.
        token: what requests must bear; None lets programs of this machine ask without.
    """

    def __init__(self, engine: EngineClient, settings: Settings, token: str | None) -> None:
        """Hold no text; nothing is started."""
        self._engine = engine
        self._settings = settings
        self._token = token
        self._sessions = TextSessions(engine)
        self._openai = OpenAI()
        self._infill = Infill()

    def app(self) -> ASGIApp:
        """Return the application."""
        routes = [
            Route("/v1/completions", self._on_openai, methods=["POST"]),
            Route("/infill", self._on_infill, methods=["POST"]),
            Route("/v1/models", self._on_models),
            Route("/health", self._on_health),
            Route("/v1/health", self._on_health),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._running,
            exception_handlers={HTTPException: self._on_no_route, Exception: self._on_failure},
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refused = None
            if scope["type"] == "http":
                request = Request(scope)
                refused = refusal(request.headers, self._token)
            if refused is None:
                await app(scope, receive, send)
            else:
                log.warning("refused %s %s: %s", scope["method"], scope["path"], refused[1])
                response = self._refused(self._dialect_of(scope["path"]), *refused)
                await response(scope, receive, send)

        return guarded

    @contextlib.asynccontextmanager
    async def _running(self, _: Starlette) -> AsyncIterator[None]:
        self._engine.start(self._settings, on_change=_log_change, text_of=self._sessions.text_of)
        try:
            yield
        finally:
            await self._engine.stop()

    # Paths

    async def _on_openai(self, request: Request) -> Response:
        return await self._answered(request, self._openai)

    async def _on_infill(self, request: Request) -> Response:
        return await self._answered(request, self._infill)

    async def _on_models(self, _: Request) -> Response:
        return Json(models(self._settings.model))

    async def _on_health(self, _: Request) -> Response:
        status = self._engine.status()
        if status["state"] == "ready":
            return Json({"status": "ok"})
        return self._refused(self._infill, 503, status["reason"])

    async def _on_no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "it is registered for these"
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = self._refused(self._dialect_of(request.url.path), error.status_code, message)
        response.headers.update(error.headers or {})
        return response

    async def _on_failure(self, request: Request, error: Exception) -> Response:
        """Answer what should not have happened; Starlette logs it with the stack."""
        message = f"internal error, the log has more: {type(error).__name__}"
        return self._refused(self._dialect_of(request.url.path), 500, message)

    # Answers

    async def _answered(self, request: Request, dialect: Dialect) -> Response:
        try:
            asked = dialect.asked(object_of(await self._body(request)), self._settings)
            self._check_text(asked.text)
            if asked.streams and asked.params is not None:
                return EventStream(
                    lambda send_event: self._stream(asked, dialect, send_event),
                    lambda error: (_status_of(error), dialect.error(_status_of(error), str(error))),
                    dialect.ends_with,
                )
            pieces: list[Piece] = []
            given = await unless_gone(request.receive, self._given(asked, pieces.append))
            return Json(dialect.whole(asked, self._settings.model, given, pieces))
        except EngineError as error:
            return self._refused(dialect, _status_of(error), str(error))
        except HTTPException as error:
            return self._refused(dialect, error.status_code, error.detail)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)

    async def _stream(self, asked: Asked, dialect: Dialect, send_event: SendEvent) -> None:
        """Send the pieces as they come, and what follows the last."""
        model, about = self._settings.model, f"cmpl-{time.time_ns():x}"
        waiting: asyncio.Queue[Piece | None] = asyncio.Queue()
        work = asyncio.ensure_future(self._given(asked, waiting.put_nowait))
        work.add_done_callback(lambda _: waiting.put_nowait(None))
        num_chars = 0
        try:
            while (piece := await waiting.get()) is not None:
                await send_event(dialect.part(asked, model, about, piece, num_chars))
                num_chars += len(piece.text)
            for event in dialect.last(asked, model, about, work.result()):
                await send_event(event)
        finally:
            work.cancel()

    async def _given(self, asked: Asked, on_piece: Callable[[Piece], None]) -> Completion:
        masked = None
        if self._settings.hide_secrets:
            masked = await masked_in_slices(asked.text, PLAIN_TEXT)
        text = asked.text if masked is None else masked.text
        if asked.params is None:
            if text:  # llama.vim warms the cache for other files' text alone
                await self._sessions.warm(text, asked.offset)
            return NOTHING
        if masked is None or not masked.spans:
            return await self._sessions.complete(
                text, asked.offset, asked.params, lambda *piece: on_piece(Piece(*piece))
            )
        # Only the whole of it shows whether it repeats what is hidden.
        given = await self._sessions.complete(text, asked.offset, asked.params)
        given = replace(given, text=without_placeholders(given.text, masked))
        on_piece(Piece(given.text, math.prod(given.probabilities)))
        return given

    async def _body(self, request: Request) -> bytes:
        most = _BODY_FACTOR * self._settings.max_document_bytes + _BODY_MARGIN
        body = bytearray()
        async for chunk in request.stream():
            if len(body) <= most:  # the rest is passed over: who still sends hears no answer
                body += chunk
        if len(body) > most:
            raise HTTPException(413, f"the body has more than {most} bytes: send less text")
        return bytes(body)

    def _check_text(self, text: str) -> None:
        settings = self._settings
        limits = Limits(settings.max_document_bytes, settings.max_line_chars)
        if (reason := Document("", 0, text, UTF32, limits).refusal) is not None:
            raise DocumentRefused(reason)

    def _refused(self, dialect: Dialect, status: int, message: str) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return Json(dialect.error(status, message), status, headers)

    def _dialect_of(self, path: str) -> Dialect:
        return self._openai if path.startswith("/v1/") else self._infill


def _status_of(error: EngineError) -> int:
    return _STATUS.get(type(error), 500)


def _log_change(state: str, what: str, percent: int) -> None:
    if state != "loading":  # that comes many times
        log.log(logging.ERROR if state == "failed" else logging.INFO, "engine: %s", what)
