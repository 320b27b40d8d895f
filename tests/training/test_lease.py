"""A lease from loads to the file that is brought back, by real processes, tiny and on a CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from keyturn.engine.files.weights import load_model as load_files
from training import carry, lease
from training.data.documents import write_documents
from training.prepare import parse_args

from .conftest import ROOT


@pytest.fixture
def loads(tmp_path, exported, documents):
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(exported.read_bytes())
    write_documents(tmp_path / "held.bin.zst", documents[:2])
    write_documents(tmp_path / "train_0.bin.zst", documents[2:4])
    names = ("tiny.gguf", "held.bin.zst", "train_0.bin.zst")
    yield carry.pack([tmp_path / name for name in names], tmp_path / "loads", 2)
    if (pid := tmp_path / "work" / "pid").exists():
        with contextlib.suppress(ProcessLookupError):  # it has ended, as it should
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_a_lease_trains_until_its_end_and_its_file_comes_back(loads, tmp_path, exported):
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    environment = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

    def run(*command):
        line = [sys.executable, "-m", *command]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    started = ["training.lease", "start", str(work), "--minutes", "600", "--weights", "tiny.gguf"]
    started += ["--parts", "1", "--units", "1", "--held-units", "1", "--gpus", "1"]
    started += ["--workers", "1", "--train", "--tokens 256 --eval-batches 1 --exit-weight 0"]
    run(*started)  # before anything is there
    for load in loads:
        run("training.carry", "receive", str(load), str(work))
    deadline = time.time() + 500
    while (
        not (work / "out" / "log.jsonl").exists()
        or "lr" not in (work / "out" / "log.jsonl").read_text()
    ):
        assert time.time() < deadline and not (work / lease.DONE).exists()
        time.sleep(0.2)
    (work / lease.DEADLINE).write_text(str(time.time() + 3))  # the end comes sooner
    last = json.loads(run("training.lease", "status", str(work), "--wait", "500").splitlines()[-1])
    assert last["done"]["from"] == "final.pt" and "error" not in last["done"]
    told = run("training.lease", "bring", str(work), str(out), "--count", "1")
    run("training.lease", "bring", str(work), str(out), "--first", "1", "--count", "7")
    assert json.loads(told)["pieces"] == last["done"]["pieces"]
    whole = b"".join(path.read_bytes() for path in sorted(out.glob("keyturn.gguf.*")))
    (out / "new.gguf").write_bytes(whole)
    new, old = (load_files(path, torch.float32).tensors for path in (out / "new.gguf", exported))
    assert new.keys() == old.keys() and "log.jsonl" in os.listdir(out)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("done" in line for line in lines) and lines[-1]["loss30"] > 0


def test_training_that_does_not_end_is_stopped_and_the_checkpoint_taken(tmp_path, monkeypatch):
    work = tmp_path / "work"
    args = ["start", str(work), "--minutes", "-1", "--weights", "w.gguf"]
    monkeypatch.setattr(lease.subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=1))
    lease.main(args)
    ran = []

    def run(self, *command, timeout=None):
        ran.append((command, timeout))
        if command[0] == "train":
            raise subprocess.TimeoutExpired("train", timeout)
        (work / "back" / "keyturn.gguf").write_bytes(bytes(1000))
        (work / "export.log").write_text("sha256 0\n")

    monkeypatch.setattr(lease.Lease, "execute", run)
    monkeypatch.setattr(lease.Lease, "wait_for", lambda self, path: path)
    monkeypatch.setattr(lease.Lease, "prepare", lambda self: None)
    lease.Lease(work).run()
    done = json.loads((work / lease.DONE).read_text())
    assert done["from"] == "checkpoint.pt" and done["pieces"] == 1
    assert ran[0][1] == 1.0 and ran[1][0][1].endswith("checkpoint.pt")


def test_nothing_is_brought_before_it_is_there(tmp_path):
    with pytest.raises(SystemExit, match="no pieces"):
        lease.bring(tmp_path, tmp_path, 0, 4)


def test_daemon_is_a_session_of_its_own(tmp_path, monkeypatch):
    seen = {}

    def popen(*_, **more):
        seen.update(more)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(lease.subprocess, "Popen", popen)
    lease.main(["start", str(tmp_path / "work"), "--minutes", "1"])
    assert (
        seen["start_new_session"] and (tmp_path / "work" / "site" / "keyturn" / "engine").exists()
    )


def test_the_second_half_of_the_parts_has_options_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(lease.subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=1))
    args = ["start", str(tmp_path / "work"), "--minutes", "1", "--parts", "3"]
    lease.main([*args, "--prepare", "--seed 3 --small 1", "--late", "--small 3"])
    ran = []
    monkeypatch.setattr(lease.Lease, "execute", lambda self, *command, **_: ran.append(command))
    monkeypatch.setattr(lease.Lease, "wait_for", lambda self, path: path)
    lease.Lease(tmp_path / "work").prepare()
    of_parts = [parse_args(list(command[1:])) for command in ran[1:]]
    assert [args.small for args in of_parts] == [1, 3, 3, 1, 3, 3]
    assert all(args.seed == 3 for args in of_parts)
