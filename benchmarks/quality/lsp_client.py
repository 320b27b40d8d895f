"""A small language client over stdio, for benchmarks: one request at a time, notifications kept."""

from __future__ import annotations

import json
import subprocess
from typing import Any


class LspError(Exception):
    """The server answered a request with an error."""


class LspClient:
    """Starts a language server and talks to it; a context manager that shuts it down."""

    def __init__(
        self,
        command: list[str],
        options: dict[str, Any],
        environment: dict[str, str] | None = None,
        capabilities: dict[str, Any] | None = None,
    ) -> None:
        """Start `command` and initialize it with `options`, positions in code points.

        Args:
            command: program and arguments.
            options: settings, as an editor sends them.
            environment: of the process; this one's if None.
            capabilities: of the client, beside inline completions.
        """
        self.notifications: list[dict[str, Any]] = []
        self._next_id = 0
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        capabilities = (capabilities or {}) | {
            "general": {"positionEncodings": ["utf-32"]},
            "textDocument": {"inlineCompletion": {}},
        }
        params = {"processId": None, "rootUri": None, "capabilities": capabilities}
        self.server = self.request("initialize", params | {"initializationOptions": options})
        self.notify("initialized", {})

    def __enter__(self) -> LspClient:
        """Return the running client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Shut the server down."""
        try:
            self.request("shutdown", None)
            self.notify("exit", None)
            self._process.wait(timeout=10)
        finally:
            self._process.kill()

    def notify(self, method: str, params: object) -> None:
        """Send a notification."""
        self._send({"method": method} | ({} if params is None else {"params": params}))

    def request(self, method: str, params: object) -> Any:  # noqa: ANN401 - the server's JSON
        """Send a request and wait for its result.

        Raises:
            LspError: the server answered with an error or went away.
        """
        self._next_id += 1
        number = self._next_id
        message = {"id": number, "method": method}
        self._send(message | ({} if params is None else {"params": params}))
        while True:
            message = self._receive()
            if "method" in message and "id" in message:  # progress tokens, configuration
                wanted = message.get("params", {}).get("items", [])
                result = [{} for _ in wanted] if "configuration" in message["method"] else None
                self._send({"id": message["id"], "result": result})
            elif "method" in message:
                self.notifications.append(message)
            elif message.get("id") == number:
                if "error" in message:
                    raise LspError(f"{method}: {message['error']}")
                return message["result"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin, "started with a pipe"
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout, "started with a pipe"
        length = 0
        while (line := self._process.stdout.readline()).strip():
            name, value = line.split(b":")
            length = int(value) if name.lower() == b"content-length" else length
        if not line:
            raise LspError("the server closed its output")
        return json.loads(self._process.stdout.read(length))
