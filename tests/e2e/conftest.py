"""Language-server processes of the tests: their own runtime folder, one shared engine host."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..lsp_client import LspClient


@pytest.fixture(scope="module")
def runtime_dir() -> Iterator[str]:
    """A short path (socket names are limited), which no other test and no user shares."""
    folder = tempfile.mkdtemp(prefix="kt")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def options(tiny_model: Path) -> dict[str, Any]:
    """Settings under which a completion depends on the text alone."""
    return {
        "model": str(tiny_model),
        "device": "cpu",
        "dtype": "float32",
        "num_threads": 1,
        "max_tokens": 16,
        "time_budget_ms": 0,
        "debounce_ms": 0,
        "host_idle_s": 30,
    }


@pytest.fixture
def start(runtime_dir: str) -> Iterator[Callable[..., LspClient]]:
    """Start language servers; all are ended with the test, and the host if they left one."""
    clients: list[LspClient] = []
    hosts: set[int] = set()

    def start_one(runtime: str | None = None) -> LspClient:
        client = LspClient(runtime or runtime_dir)
        clients.append(client)
        return client

    yield start_one
    for client in clients:
        if client.process.poll() is None:
            try:
                hosts.add(client.result("keyturn/status", timeout_s=5).get("host_pid") or 0)
            except (AssertionError, OSError):
                pass
        client.kill()
    for pid in hosts - {0}:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
