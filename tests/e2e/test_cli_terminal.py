"""`keyturn complete` on a terminal, and while a file is edited."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .commands import KEYTURN, run

WAIT_S = 300
TEXT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef spread(values):\n    "
# Of the embedded model: several lines of code, whatever else.
LINES = "class Point:\n    def __init__(self, x, y):\n        "


class Terminal:
    """A process whose standard output is a terminal."""

    def __init__(self, *arguments: str, **env: str) -> None:
        pty = pytest.importorskip("pty")
        self._master, end = pty.openpty()
        self.process = subprocess.Popen(
            [*KEYTURN, *arguments],
            stdout=end,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **env},
        )
        os.close(end)
        self.shown = ""

    def read(self, until: str | None = None) -> str:
        """Return what is shown up to and with a pattern, or to the end."""
        deadline = time.monotonic() + WAIT_S
        while until is None or not re.search(until, self.shown):
            if not select.select([self._master], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(self.shown)
            try:
                data = os.read(self._master, 4096)
            except OSError:  # nobody holds the other end any more
                break
            if not data:
                break
            self.shown += data.decode()
        return self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._master)


@pytest.fixture
def env(tmp_path_factory) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("run"))}


def highlighted(shown: str) -> str:
    """Return what stands in the completion's style, line by line."""
    lines = [
        "".join(re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", line))
        for line in shown.replace("\r\n", "\n").split("\n")
        if "+│" in line
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [TEXT, LINES])
def test_a_terminal_shows_in_place_what_a_pipe_gets(tmp_path, env, text) -> None:
    path = tmp_path / "code.py"
    path.write_text(text + "\n\n\nlast = 1\n")
    line = text.count("\n") + 1
    place = f"{path}:{line}:{len(text.split(chr(10))[-1])}"
    done = run("complete", place, **env)
    assert (done.returncode, done.stderr) == (0, "")
    terminal = Terminal("complete", place, **env)
    try:
        shown = terminal.read()
        assert terminal.process.wait(WAIT_S) == 0
        assert highlighted(shown) + "\n" == done.stdout
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r\n", "\n")
        assert f"{line - 1}  │ {text.split(chr(10))[-2]}\n" in plain
        assert terminal.process.stderr.read() == b""  # progress is for terminals
    finally:
        terminal.close()


def test_no_color_is_respected(tmp_path, env, tiny_model) -> None:
    path = tmp_path / "code.txt"
    path.write_text("import os\nname = ")
    flags = ("--model", str(tiny_model), "--device", "cpu", "--max-tokens", "8")
    terminal = Terminal("complete", f"{path}:2:7", *flags, NO_COLOR="1", **env)
    try:
        assert not re.search(r"\x1b\[[\d;]*3\d", terminal.read())
        assert terminal.process.wait(WAIT_S) == 0
    finally:
        terminal.close()


@pytest.fixture
def watch(tmp_path, tiny_model, env) -> Iterator[subprocess.Popen]:
    path = tmp_path / "code.txt"
    path.write_text("import os\nname = ")
    flags = ("--model", str(tiny_model), "--device", "cpu", "--max-tokens", "4", "--json")
    process = subprocess.Popen(
        [*KEYTURN, "complete", f"{path}:2:7", "--watch", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    yield process
    process.kill()
    process.communicate()


def test_watch_completes_again_and_ends_with_ctrl_c(tmp_path: Path, watch, tiny_model, env) -> None:
    path, flags = tmp_path / "code.txt", ("--model", str(tiny_model), "--device", "cpu")
    first = json.loads(watch.stdout.readline())
    # An editor writes another file and renames it; what was added above has moved the place.
    other = tmp_path / "code.txt~"
    other.write_text("import os\nimport sys\nname = ")
    other.replace(path)
    second = json.loads(watch.stdout.readline())
    assert second["num_prompt_tokens"] > first["num_prompt_tokens"]
    assert second["num_reused_tokens"] > 0  # the cache followed the edit
    again = run("complete", f"{path}:3:7", *flags, "--max-tokens", "4", "--json", **env)
    assert json.loads(again.stdout)["text"] == second["text"]
    path.write_bytes(b"\xff")
    assert "is not UTF-8" in watch.stderr.readline()
    path.write_text("import os\nname = ")
    json.loads(watch.stdout.readline())
    watch.send_signal(signal.SIGINT)
    assert watch.wait(WAIT_S) == 0
    assert watch.stderr.read() == ""
