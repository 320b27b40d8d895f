"""A language client over a real `keyturn serve` process: plain JSON-RPC on its stdio."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from typing import Any

SERVE = [sys.executable, "-P", "-m", "keyturn.server", "serve", "--stdio"]


class LspClient:
    """Starts a server and talks to it; replies may come in any order.

    Attributes:
        process: the server.
        notifications: what the server sent by itself, in order.
        requests: methods of the server's own requests, in order.
        settings: what it answers when it is asked for its settings.
        hosts: processes of the engine hosts it was told of.
    """

    def __init__(self, runtime_dir: str, command: list[str] | None = None) -> None:
        env = {**os.environ, "XDG_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command or SERVE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        self.notifications: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.settings: dict[str, Any] | None = None
        self.hosts: set[int] = set()
        self.log: list[str] = []
        self._replies: dict[int, dict[str, Any]] = {}
        self._arrived: queue.Queue[None] = queue.Queue()
        self._next_id = 0
        for target in (self._read, self._read_log):
            threading.Thread(target=target, daemon=True).start()

    def initialize(self, options: dict[str, Any] | None = None, **capabilities: Any) -> Any:
        capabilities.setdefault("textDocument", {"inlineCompletion": {}})
        params = {
            "processId": os.getpid(),
            "rootUri": None,
            "capabilities": capabilities,
            "initializationOptions": options or {},
        }
        result = self.result("initialize", params)
        self.notify("initialized", {})
        return result["capabilities"]

    def notify(self, method: str, params: object = None) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def request(self, method: str, params: object = None) -> int:
        """Send a request and return its id."""
        self._next_id += 1
        self.send({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params})
        return self._next_id

    def reply(self, request_id: int, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for the reply to a request."""
        deadline = time.monotonic() + timeout_s
        while request_id not in self._replies:
            try:
                self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                log = "".join(self.log[-20:])
                raise AssertionError(f"no reply to request {request_id}; log:\n{log}") from None
        return self._replies[request_id]

    def result(self, method: str, params: object = None, timeout_s: float = 120) -> Any:
        """Send a request and return its result."""
        reply = self.reply(self.request(method, params), timeout_s)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, uri: str, text: str, version: int = 1) -> None:
        # What the tests' little models write is no program: nothing else may be offered in Python.
        item = {"uri": uri, "languageId": "plaintext", "version": version, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})

    def change(self, uri: str, version: int, *changes: dict[str, Any]) -> None:
        document = {"uri": uri, "version": version}
        params = {"textDocument": document, "contentChanges": changes}
        self.notify("textDocument/didChange", params)

    def ask(self, uri: str, line: int, character: int, kind: int = 1) -> int:
        """Send an inline completion request and return its id."""
        params = {
            "textDocument": {"uri": uri},
            "position": {"line": line, "character": character},
            "context": {"triggerKind": kind},
        }
        return self.request("textDocument/inlineCompletion", params)

    def complete(self, uri: str, line: int, character: int) -> str:
        """Return the text of an invoked inline completion, "" for none."""
        reply = self.reply(self.ask(uri, line, character))
        assert "error" not in reply, reply
        return "".join(item["insertText"] for item in reply["result"])

    def wait_for_state(self, state: str, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until keyturn/status says `state`; return the whole status."""
        deadline = time.monotonic() + timeout_s
        while (status := self.result("keyturn/status"))["state"] != state:
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        return status

    def send(self, message: object) -> None:
        """Send one message."""
        self.send_body(json.dumps(message).encode())

    def send_body(self, body: bytes) -> None:
        """Send one message's bytes."""
        stdin = self.process.stdin
        assert stdin
        stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        stdin.flush()

    def shut_down(self) -> int:
        """End the session as the protocol says; return the exit code."""
        self.result("shutdown")
        self.notify("exit")
        return self.process.wait(60)

    def kill(self) -> None:
        """End the server if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the test closed the pipe
            self._read_messages()

    def _read_messages(self) -> None:
        stdout = self.process.stdout
        assert stdout
        while header := stdout.readline():
            length = int(header.split(b":")[1]) if header.startswith(b"Content-Length") else 0
            while (line := stdout.readline().strip()) != b"":
                if line.startswith(b"Content-Length"):
                    length = int(line.split(b":")[1])
            self._take(json.loads(stdout.read(length)))

    def _take(self, message: dict[str, Any]) -> None:
        for part in (message.get("result"), message.get("params")):
            if isinstance(part, dict) and part.get("host_pid"):
                self.hosts.add(part["host_pid"])
        if "method" not in message:
            self._replies[message["id"]] = message
            self._arrived.put(None)
        elif "id" in message:
            self.requests.append(message["method"])
            asked = message["method"] == "workspace/configuration"
            result = [self.settings] if asked else None
            self.send({"jsonrpc": "2.0", "id": message["id"], "result": result})
        else:
            self.notifications.append(message)

    def _read_log(self) -> None:
        stderr = self.process.stderr
        assert stderr
        for line in stderr:
            self.log.append(line.decode("utf-8", "replace"))
