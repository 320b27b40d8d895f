"""A run on the CPU is killed, goes on, ends; its schedule and its optimiser do what they say."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from training import prepare, train
from training.data.documents import write_documents
from training.model.decoder import TINY, Model, Shape
from training.model.optimiser import Optimiser, orthogonal
from training.model.processes import Processes
from training.model.rounding import q4_1
from training.model.schedule import Clock, Span, learning_rate
from training.model.weights import load_model

from .conftest import ROOT

# Few tokens of a small vocabulary: a step takes a tenth of the time, and a run does all it does.
NUM_TOKENS, VOCABULARY = 256, 1024


@pytest.fixture(scope="module")
def shards(tmp_path_factory, documents, tokenizer_path):
    folder = tmp_path_factory.mktemp("shards")
    write_documents(folder / "a.bin.zst", documents)
    command = [str(tokenizer_path), str(folder), str(folder / "a.bin.zst")]
    prepare.main([*command, "--passes", "1", "--units", "3", "--workers", "1"])
    for path in folder.glob("p*.npz"):
        with np.load(path) as shard:
            parts = dict(shard)
        np.savez(path, **parts | {"tokens": parts["tokens"] % VOCABULARY})
    torch.manual_seed(0)
    model = Model(dataclasses.replace(TINY, vocabulary=VOCABULARY))
    torch.save({"model": model.state_dict()}, folder / "tiny.pt")
    return folder


def options(shards, out, *more):
    return [
        *("--weights", str(shards / "tiny.pt"), "--shards", str(shards), "--passes", "0:3"),
        *("--out", str(out), "--tokens", str(NUM_TOKENS)),
        *more,
    ]


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_killed_run_goes_on_and_ends(shards, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "training.train", *options(shards, out, "--steps", "60")]
    command += ["--save-every", "0", "--resume"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 500
    while not (out / "checkpoint.pt").exists() and time.time() < deadline:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "DONE").exists()
    killed_at = torch.load(out / "checkpoint.pt")["step"]
    assert 0 < killed_at < 60
    # It may have been killed between the two files of a later checkpoint.
    has_momenta = torch.load(out / "momenta.pt")["step"] == killed_at

    train.main(options(shards, out, "--steps", str(killed_at + 5), "--resume"))
    resumed = [line for line in log_of(out) if "resumed" in line]
    assert [line["resumed"] for line in resumed] == [killed_at]
    assert resumed[0]["momenta"] == has_momenta
    final = torch.load(out / "final.pt")
    assert (final["step"], final["progress"]) == (killed_at + 5, 1.0)
    assert final["tokens"] == NUM_TOKENS * (killed_at + 5)
    assert (out / "DONE").exists()
    before = (out / "final.pt").stat().st_mtime_ns
    train.main(options(shards, out, "--steps", "60", "--resume"))  # it is done
    assert (out / "final.pt").stat().st_mtime_ns == before


def test_run_in_pieces_stops_with_a_checkpoint(shards, tmp_path):
    out = tmp_path / "out"
    train.main(options(shards, out, "--minutes", "1", "--stop-after", "1e-9"))
    assert (out / "checkpoint.pt").exists() and not (out / "DONE").exists()
    with pytest.raises(SystemExit):  # it is not overwritten
        train.main(options(shards, out, "--minutes", "1"))
    held = ("--held", str(shards), "--eval-batches", "1")
    train.main(options(shards, out, "--resume", "--minutes", "0.001", *held))
    evaluated = [line for line in log_of(out) if "eval" in line]
    assert [line["on_grid"] for line in evaluated] == [True, False]
    assert evaluated[0]["n"] > 0 and 0 < evaluated[0]["loss30"] < 20
    assert (out / "DONE").exists()


def test_same_seed_gives_the_same_run_and_ablations_run(shards, tmp_path):
    runs = {
        "a": (),
        "b": (),
        "seed": ("--seed", "1"),
        "no_exits": ("--exit-weight", "0"),
        "no_grid": ("--grid-from", "1"),
    }
    for name, more in runs.items():
        train.main(options(shards, tmp_path / name, "--steps", "3", *more))
    state = {name: torch.load(tmp_path / name / "final.pt")["model"] for name in runs}
    assert all(torch.equal(w, state["b"][name]) for name, w in state["a"].items())
    for name in ("seed", "no_exits"):
        assert not torch.equal(state[name]["embedding"], state["a"]["embedding"])
    step = next(line for line in log_of(tmp_path / "no_exits") if line.get("step") == 2)
    assert not any(key.startswith("exit") for key in step)


def test_optimiser_shows_rounded_copies_and_keeps_masters():
    torch.manual_seed(0)
    model = Model(TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = Optimiser(model, 1e-3, 1e-3, 0.0)
    optimiser.publish(True)
    for name, p in model.named_parameters():
        wanted = q4_1(before[name]).bfloat16() if p.dim() == 2 else before[name]
        assert torch.equal(p, wanted)
    assert all(torch.equal(w, before[name]) for name, w in optimiser.state().items())


def test_momenta_come_back():
    torch.manual_seed(0)
    results = []
    for saved in (False, True):
        torch.manual_seed(0)
        model = Model(TINY)
        optimiser = Optimiser(model, 1e-3, 1e-3, 0.1)
        for step in range(3):
            if saved and step == 2:
                momenta = optimiser.momenta()
                fresh = Model(TINY)
                fresh.load_state_dict(optimiser.state())
                model, optimiser = fresh, Optimiser(fresh, 1e-3, 1e-3, 0.1)
                optimiser.load_momenta(momenta)
            for p in model.parameters():
                noise = torch.Generator().manual_seed(step)
                p.grad = torch.randn(p.shape, generator=noise).to(p.dtype)
            optimiser.collect()
            optimiser.step(1.0, False)
        results.append(optimiser.state())
    assert all(torch.equal(w, results[1][name]) for name, w in results[0].items())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 64, 192)])
def test_orthogonal_has_singular_values_near_one(shape, dtype):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape), dtype).float())
    assert 0.5 < values.min() and values.max() < 1.35


def test_learning_rate_warms_up_stays_and_falls():
    rates = [learning_rate(i / 100, 0.1, 0.5) for i in range(101)]
    assert rates[0] == pytest.approx(0.02) and rates[10] == rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True) and rates[100] == pytest.approx(0.01)


def test_clock_counts_steps_or_follows_the_deadline(tmp_path):
    alone = Processes(0, 1, torch.device("cpu"), None)
    clock = Clock(Span(0.0, 1.0, 0.5, steps=10), alone, 5)
    clock.tick()
    assert clock.progress == pytest.approx(0.6)
    (tmp_path / "deadline").write_text(str(time.time() - 5))
    clock = Clock(Span(0.0, 0.5, 0.0, deadline_file=tmp_path / "deadline"), alone, 0)
    time.sleep(0.01)
    clock.start_s -= 100
    assert clock.tick() and clock.progress >= 1
    assert Span(0.2, 0.6).place(0.5) == pytest.approx(0.4)


def test_shape_follows_from_a_checkpoint():
    for shape in (TINY, Shape(num_layers=2, width=128, num_heads=4, num_kv_heads=2, ff_width=32)):
        assert Shape.of_state(Model(shape).state_dict()) == shape
    assert load_model("random-tiny").shape == TINY
