"""The commands that run an engine, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEYTURN = [sys.executable, "-P", "-m", "keyturn.server"]
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


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*KEYTURN, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


@pytest.fixture
def code_file(tmp_path: Path) -> Path:
    path = tmp_path / "code.txt"
    path.write_bytes(b"import os\r\nname = \r\nprint(name)\r\n")
    return path


def test_complete_prints_the_contracts_fields(code_file, tiny_model) -> None:
    place, model = f"{code_file}:2:7", str(tiny_model)
    flags = ("--model", model, "--device", "cpu", "--max-tokens", "8")
    done = run("complete", place, *flags, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert list(figures) == FIGURES
    assert figures["model"] == model
    assert figures["text"]
    assert run("complete", place, *flags).stdout == figures["text"] + "\n"
    layers = str(figures["num_layers_run"])
    assert run("complete", place, *flags, "--depth", layers).returncode == 0
    refused = run("complete", place, *flags, "--depth", "99")
    assert refused.returncode == 2
    assert f"only full or {layers}" in refused.stderr


def test_the_same_seed_gives_the_same_text(code_file, tiny_model) -> None:
    flags = ("--model", str(tiny_model), "--temperature", "1.5", "--top-p", "0.9")
    texts = [
        run("complete", f"{code_file}:2:7", *flags, "--seed", seed).stdout
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_model_errors_are_one_line(code_file, tmp_path) -> None:
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 64)
    empty = tmp_path / "empty"
    empty.mkdir()
    for model in (str(corrupt), str(empty), "no/such-model", "nonsense"):
        done = run("complete", f"{code_file}:2:7", "--model", model, HF_HUB_OFFLINE="1")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("keyturn: ")
        assert done.stderr.count("\n") == 1, done.stderr
    done = run("complete", f"{code_file}:2:7", "--device", "warp:9")
    assert done.returncode == 2
    assert "warp:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_connect_needs_a_running_host(code_file, tmp_path) -> None:
    done = run("complete", f"{code_file}:2:7", "--connect", XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "no engine host is running" in done.stderr


def test_connect_gives_what_the_command_gives(code_file, tiny_model, start, options, runtime_dir):
    client = start()
    client.initialize(options)
    client.wait_for_state("ready")
    flags = (
        "complete",
        f"{code_file}:2:7",
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    here = run(*flags)
    there = run(*flags, "--connect", XDG_RUNTIME_DIR=runtime_dir)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == here.stdout != ""


def test_replay_prints_completions_then_the_summary(tmp_path, tiny_model) -> None:
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
    broken = run("replay", str(trace), "--model", str(tiny_model))
    assert broken.returncode == 2
    assert broken.stderr.count("\n") == 1


@pytest.mark.parametrize("wait_s", [0.05, 0.5, 2.0])
def test_ctrl_c_ends_quietly(code_file, tiny_model, wait_s) -> None:
    flags = ("--model", str(tiny_model), "--max-tokens", "1000")
    process = subprocess.Popen(
        [*KEYTURN, "complete", f"{code_file}:2:7", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    # Before the command has started Python ends its own way; it may have finished before the
    # signal; and where a library has put the default action back, the signal ends it as quietly.
    assert process.returncode in (130, 0, -signal.SIGINT) or wait_s < 0.1
    if wait_s > 0.1:
        assert err == b""


def test_doctor_and_models_report_in_json(tmp_path, tiny_model) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run("doctor", "--json", "--model", str(tiny_model), **env)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["problems"]) == (0, True, [])
    assert found["device"]
    assert found["model"]["load_ms"] > 0
    done = run("doctor", "--json", "--model", "no/such-model", **env)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert "no/such-model" in found["problems"][0]["problem"]
    models = json.loads(run("models", "--json", **env).stdout)
    assert {"families", "on_disk"} == set(models)
    assert any(model["name"] == "embedded" for model in models["on_disk"])
