"""`keyturn serve --http`: the application on a loopback port, until it is interrupted."""

from __future__ import annotations

import logging
import socket

import uvicorn

from ...engine.wire.errors import BadRequest
from ..engine_client import EngineClient
from ..settings import Settings
from .app import HttpServer

log = logging.getLogger(__name__)

# Requests at a time; more are told to come back. Each holds its text.
_MOST_REQUESTS = 64
_STOP_SECONDS = 2


def serve(host: str, port: int, settings: Settings, token: str | None) -> int:
    """Serve until interrupted; return the exit code.

    Args:
        host: a loopback address or name.
        port: 0 takes a free one, which the log names.
        settings: of the engine, and for what a request leaves out.
        token: what requests must bear, None for none.

    Raises:
        BadRequest: the port cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadRequest(
            f"--http {host}:{port}: {error.strerror or error}; give another port"
        ) from None
    with listener:
        name = listener.getsockname()
        log.warning("listening on http://%s:%d", f"[{name[0]}]" if ":" in host else host, name[1])
        config = uvicorn.Config(
            HttpServer(EngineClient(), settings, token).app(),
            log_config=None,
            access_log=False,
            ws="none",
            lifespan="on",
            limit_concurrency=_MOST_REQUESTS,
            timeout_graceful_shutdown=_STOP_SECONDS,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0
