"""Language-server processes of the tests: their own runtime folder, one shared engine host."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..lsp_client import LspClient
from ..nvim import Nvim
from .nvim_plugin import Plugin


@pytest.fixture(scope="module")
def hosts() -> Iterator[set[int]]:
    """Processes of engine hosts that the module's tests have seen; they are ended after it."""
    pids: set[int] = set()
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def runtime_dir(hosts: set[int]) -> Iterator[str]:
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
        "speculate": False,
        "confidence": "any",
        "host_idle_s": 30,
        "heal": "full",
        "cold_budget_ms": 0,
    }


@pytest.fixture
def start(runtime_dir: str, hosts: set[int]) -> Iterator[Callable[[], LspClient]]:
    """Start language servers, which share a host; they are ended with the test."""
    clients: list[LspClient] = []

    def start_one() -> LspClient:
        clients.append(LspClient(runtime_dir))
        return clients[-1]

    yield start_one
    for client in clients:
        hosts |= client.hosts
        client.kill()


@pytest.fixture
def nvim(runtime_dir: str, tmp_path: Path) -> Iterator[Nvim]:
    """An editor, which is ended with the test."""
    one = Nvim(runtime_dir, tmp_path)
    yield one
    one.process.kill()
    one.process.wait(60)


@pytest.fixture
def plugin(nvim: Nvim, tmp_path: Path) -> Plugin:
    """The plugin, not set up yet, in an editor of the test's own."""
    return Plugin(nvim, tmp_path)


@pytest.fixture(scope="module")
def shared(runtime_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """The plugin, set up, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("shared")
    nvim = Nvim(runtime_dir, folder)
    plugin = Plugin(nvim, folder)
    plugin.set_up()
    plugin.edit("first.py")
    yield plugin
    nvim.process.kill()
    nvim.process.wait(60)


@pytest.fixture
def ready(shared: Plugin, tmp_path: Path) -> Plugin:
    """The shared editor with one window and an empty Python file."""
    shared.folder = tmp_path
    shared.type("<C-\\><C-n>:silent tabonly | silent only<CR>:silent %bwipeout!<CR>")
    shared.edit("a.py")
    shared.ask("test/clear")
    return shared
