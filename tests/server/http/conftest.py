"""HTTP servers of the tests: in a thread over a host with a fake engine, and as a real process."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from keyturn.engine.wire.address import Address, at_socket
from keyturn.server.engine_client import EngineClient
from keyturn.server.engine_link import look
from keyturn.server.http.app import HttpServer
from keyturn.server.settings import Settings

ROOT = Path(__file__).parent.parent.parent.parent
SETTINGS = replace(
    Settings(), model="m", host_idle_s=20.0, host_retry_max_s=0.5, time_budget_ms=0.0
)


class Tool:
    """What speaks HTTP to a server: one connection a request, as curl does.

    Attributes:
        port: of the server.
        headers: sent with every request.
    """

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self.headers = port, headers

    def raw(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return response.status, response.read(), response.headers

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, body, _ = self.raw("GET", path, **headers)
        return status, json.loads(body)

    def post(self, path: str, fields: object, **headers: str) -> tuple[int, Any]:
        status, body, _ = self.raw("POST", path, json.dumps(fields).encode(), **headers)
        return status, json.loads(body)

    def events(self, path: str, fields: dict[str, Any]) -> list[Any]:
        """Return the events of a streamed answer; the last may be the text "[DONE]"."""
        fields = {**fields, "stream": True}
        status, body, headers = self.raw("POST", path, json.dumps(fields).encode())
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream"), body
        lines = [line for line in body.decode().split("\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        found = [line.removeprefix("data: ") for line in lines]
        return [one if one == "[DONE]" else json.loads(one) for one in found]

    def infill(self, before: str, after: str = "", **fields: Any) -> Any:
        """Return llama.cpp's answer, which must be one."""
        asked = {"input_prefix": before, "input_suffix": after, "prompt": "", **fields}
        status, answer = self.post("/infill", asked)
        assert status == 200, answer
        return answer


@contextlib.contextmanager
def serving(
    address: Address,
    command: list[str] | None,
    settings: Settings = SETTINGS,
    token: str | None = None,
) -> Iterator[Tool]:
    """Serve in a thread; `command` starts a host, None a real one."""
    app = HttpServer(EngineClient(command, address), settings, token).app()
    config = uvicorn.Config(
        app, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Tool(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
            end_host(address)


def end_host(address: Address) -> None:
    """End the host that serves an address, if one does."""
    found = asyncio.run(look(address, 60.0))
    if found is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found["pid"], signal.SIGTERM)


def host_status(address: Address) -> dict[str, Any]:
    """Return what the host that serves an address says of itself."""
    found = asyncio.run(look(address, 60.0))
    assert found is not None
    return found


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """Where a test's own host is."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    tmp_path.chmod(0o700)
    return at_socket(tmp_path / "s.sock")


@pytest.fixture
def fake(address: Address) -> Iterator[Callable[..., contextlib.AbstractContextManager[Tool]]]:
    """Serve over a fake engine, which answers "<before|after>" and does what its text orders."""

    def start(**options: Any) -> contextlib.AbstractContextManager[Tool]:
        return serving(address, [sys.executable, "-m", "tests.fakes"], **options)

    yield start


@pytest.fixture
def tool(fake: Callable[..., contextlib.AbstractContextManager[Tool]]) -> Iterator[Tool]:
    """Speak to a server over a fake engine, with no token."""
    with fake() as tool:
        yield tool


@contextlib.contextmanager
def real_process(runtime_dir: Path, *flags: str, token: str = "") -> Iterator[Tool]:
    """Start `keyturn serve --http` with flags, and wait until it is healthy."""
    command = [sys.executable, "-P", "-m", "keyturn.server", "serve", "--http", "127.0.0.1:0"]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir), "OMP_NUM_THREADS": "1"}
    env.pop("KEYTURN_TOKEN", None)
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, env=env, text=True)
    try:
        assert process.stderr
        line = process.stderr.readline()
        port = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        assert port, line + process.stderr.read()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        tool = Tool(int(port[1]), **headers)
        deadline = time.monotonic() + 120
        while tool.get("/health")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield tool
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
            for path in runtime_dir.glob("keyturn/*.sock"):
                end_host(at_socket(path))
