"""The commands that run an engine, as a user runs them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyturn.server.cli import main

from .commands import KEYTURN, run

FIGURES = [
    "text",
    "model",
    "num_prompt_tokens",
    "num_reused_tokens",
    "ttft_ms",
    "total_ms",
    "num_layers_run",
    "stop_reason",
]


@pytest.fixture
def call(capfd) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Run a command in this process, which has loaded torch: for all but a command's first case."""
    before = signal.getsignal(signal.SIGINT)

    def run_here(*arguments: str) -> subprocess.CompletedProcess:
        code = main(arguments)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    yield run_here
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def code_file(tmp_path: Path) -> Path:
    path = tmp_path / "code.txt"
    path.write_bytes(b"import os\r\nname = \r\nprint(name)\r\n")
    return path


def test_complete_prints_the_contracts_fields(code_file, tiny_model, call) -> None:
    place, model = f"{code_file}:2:7", str(tiny_model)
    flags = ("--model", model, "--device", "cpu", "--max-tokens", "8")
    done = run("complete", place, *flags, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert list(figures) == FIGURES
    assert figures["model"] == model
    assert figures["text"]
    for depth in ("full", "2"):
        whole = json.loads(call("complete", place, *flags, "--json", "--depth", depth).stdout)
        assert (whole["text"], whole["num_layers_run"]) == (figures["text"], 2.0)
    first = json.loads(call("complete", place, *flags, "--json", "--depth", "1").stdout)
    assert first["num_layers_run"] == 1.0
    assert first["text"] != figures["text"]
    several = json.loads(call("complete", place, *flags, "--json", "--candidates", "3").stdout)
    assert list(several) == [*FIGURES, "candidates"]
    assert several["candidates"][0] == several["text"] == figures["text"]
    assert 1 < len(set(several["candidates"])) == len(several["candidates"]) <= 3
    refused = call("complete", place, *flags, "--depth", "99")
    assert refused.returncode == 2
    assert "a number from 1 to 2" in refused.stderr


def test_the_same_seed_gives_the_same_text(code_file, tiny_model, call) -> None:
    flags = ("--model", str(tiny_model), "--temperature", "1.5", "--top-p", "0.9")
    flags = ("complete", f"{code_file}:2:7", *flags, "--threads", "1", "--seed")
    texts = [one(*flags, seed).stdout for one, seed in ((run, "1"), (call, "1"), (call, "2"))]
    assert texts[0] == texts[1] != texts[2]


def test_model_errors_are_one_line(code_file, tmp_path, call, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 64)
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = ((run, str(corrupt)), (call, str(empty)), (call, "no/such-model"), (call, "nonsense"))
    for one, model in cases:
        done = one("complete", f"{code_file}:2:7", "--model", model)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("keyturn: ")
        assert done.stderr.count("\n") == 1, done.stderr
    done = call("complete", f"{code_file}:2:7", "--device", "warp:9")
    assert done.returncode == 2
    assert "warp:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_connect_needs_a_running_host(code_file, tmp_path) -> None:
    done = run("complete", f"{code_file}:2:7", "--connect", XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "no engine host is running" in done.stderr


def test_a_running_host_gives_what_the_command_gives(
    code_file, tiny_model, start, options, runtime_dir, call, monkeypatch
):
    client = start()
    client.initialize(options)
    client.wait_for_state("ready")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    flags = ("--model", str(tiny_model), "--device", "cpu", "--dtype", "float32", "--threads", "1")
    flags = ("complete", f"{code_file}:2:7", *flags, "--json")

    def figures(*more, one=call):
        done = one(*flags, *more)
        # A random model writes what is no Python at the one place or the other: then nothing.
        assert done.returncode in (0, 3), done.stderr
        found = json.loads(done.stdout)
        assert list(found) == FIGURES
        return found

    here = figures("--no-connect", one=run)
    assert here["num_reused_tokens"] == 0
    texts = []
    # The whole prompt but the row of the cursor's token at most, and on the second run as well.
    for more, one in (((), run), (("--connect",), call), ((), call)):
        there = figures(*more, one=one)
        texts.append(there["text"])
        assert there["num_prompt_tokens"] == here["num_prompt_tokens"]
        assert there["num_reused_tokens"] >= (there["num_prompt_tokens"] - 1 if texts[1:] else 0)
    assert texts == [here["text"]] * 3 and texts[0]
    # What an editor holds with the same text is used: its stale rows are made fresh first.
    uri, text = code_file.as_uri(), code_file.read_bytes().decode()
    client.open(uri, text.replace("import os", "import sys, os"))
    client.complete(uri, 1, 7)
    start_of_line = {"line": 0, "character": 7}
    change = {"range": {"start": start_of_line, "end": {"line": 0, "character": 12}}, "text": ""}
    client.change(uri, 2, change)
    assert figures()["text"] == here["text"]
    client.change(uri, 3, {"range": {"start": start_of_line, "end": start_of_line}, "text": "x"})
    assert figures("--connect")["text"] == here["text"]
    deadline = time.monotonic() + 60
    while (host := client.result("keyturn/status", {"host": True})["host"])["num_clients"] > 1:
        assert time.monotonic() < deadline, "who has gone is counted still"
    assert (host["num_clients"], host["device"]) == (1, "cpu")
    code_file.write_bytes(code_file.read_bytes().replace(b"os", b"abc"))
    edited = figures()
    assert edited["text"] == figures("--no-connect")["text"]
    assert edited["num_reused_tokens"] > 0
    refused = call(*flags[:4], "--dtype", "bfloat16", "--connect")
    assert refused.returncode == 2
    assert "dtype = float32" in refused.stderr


def test_a_host_with_other_settings_is_not_used_unless_asked_for(
    code_file, tiny_model, start, options, runtime_dir, call, monkeypatch
):
    client = start()
    client.initialize(options | {"model": "embedded"})
    client.wait_for_state("ready")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    flags = ("complete", f"{code_file}:2:7", "--model", str(tiny_model), "--json")
    before = client.result("keyturn/status", {"host": True})["host"]
    assert call(*flags).returncode == 0
    assert call("doctor", "--model", str(tiny_model)).returncode == 0
    after = client.result("keyturn/status", {"host": True})["host"]
    changing = ("num_queued", "is_idle")
    for status in (before, after):
        for name in changing:
            status.pop(name)
    assert after == before
    assert call(*flags, "--connect").returncode == 0
    status = client.result("keyturn/status", {"host": True})["host"]
    assert str(tiny_model) in status["models"]


def test_nothing_to_suggest_is_exit_code_3(tmp_path, tiny_model, call, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "code.py"
    path.write_text("x")
    flags = ("--model", str(tiny_model), "--device", "cpu", "--max-tokens", "1")
    codes = set()
    for seed in range(2):
        more = ("--temperature", "9", "--seed", str(seed))
        done = call("complete", f"{path}:1:1", *flags, *more)
        codes.add(done.returncode)
        assert done.returncode == (0 if done.stdout else 3)
        assert ("no completion: " in done.stderr) == (not done.stdout)
    assert codes <= {0, 3}


def test_progress_is_shown_on_a_terminal_only(code_file, tiny_model, tmp_path) -> None:
    pty = pytest.importorskip("pty")
    terminal, end = pty.openpty()
    flags = ("complete", f"{code_file}:2:7", "--model", str(tiny_model), "--device", "cpu")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen([*KEYTURN, *flags], stdout=subprocess.PIPE, stderr=end, env=env) as done:
        os.close(end)
        data = b""
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while piece := os.read(terminal, 4096):
                data += piece
        os.close(terminal)
        stdout = done.stdout.read()
    shown = data.decode()
    assert done.returncode == 0
    assert "prefilling" in shown and "tokens" in shown
    assert shown.endswith("\r\x1b[K")
    assert b"keyturn:" not in stdout


def test_replay_prints_completions_then_the_summary(tmp_path, tiny_model, call) -> None:
    text = "import os\n\n\ndef area(width):\n    return \n"
    records = [
        {"open": {"path": "a.py", "text": text}},
        {"edit": {"start": 7, "end": 9, "text": "sys"}},
        {"complete": {"offset": len(text)}},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = run("replay", str(trace), "--model", str(tiny_model), "--policy", "turn", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    completion, summary = map(json.loads, done.stdout.splitlines())
    assert summary["policy"] == "turn"
    assert (summary["num_edits"], summary["num_completions"]) == (1, 1)
    trace.write_text('{"edit": {}}\n')
    broken = call("replay", str(trace), "--model", str(tiny_model))
    assert broken.returncode == 2
    assert broken.stderr.count("\n") == 1


@pytest.mark.parametrize("wait_s", [None, 0.0, 1.5])
def test_ctrl_c_ends_quietly(code_file, tiny_model, wait_s) -> None:
    """At once, where Python still ends its own way; as torch is loaded; and after that."""
    flags = ("--model", str(tiny_model), "--max-tokens", "1000")
    process = subprocess.Popen(
        [*KEYTURN, "complete", f"{code_file}:2:7", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if wait_s is not None:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "libtorch" not in maps.read_text():
            time.sleep(0.005)
    time.sleep(wait_s or 0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if wait_s is not None:
        # It may have finished before the signal; and where a library has put the default action
        # back, the signal ends it as quietly.
        assert process.returncode in (130, 0, -signal.SIGINT)
        assert err == b""


def test_doctor_and_models_report_in_json(tmp_path, tiny_model, call, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run("doctor", "--json", "--model", str(tiny_model))
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["problems"]) == (0, True, [])
    assert found["device"]
    assert found["model"]["load_ms"] > 0
    done = call("doctor", "--json", "--model", "no/such-model")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert "no/such-model" in found["problems"][0]["problem"]
    models = json.loads(call("models", "--json").stdout)
    assert {"machine", "known", "families", "architectures", "on_disk"} == set(models)
    assert any(model["name"] == "embedded" for model in models["on_disk"])
