"""A queue of variants runs, goes on where it was, and reports pairs; what has no time is left."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from training import ablate, evaluate, prepare, train
from training.data.documents import write_documents
from training.data.shards import read_shards
from training.evaluation import held_lines
from training.evaluation.greedy import Answers
from training.model.decoder import TINY, Model

from .conftest import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory, documents, tokenizer_path):
    """Pools, held-out shards, weights and a configuration of three variants, all tiny."""
    folder = tmp_path_factory.mktemp("ablate")
    write_documents(folder / "a.bin.zst", documents[:3] + documents[-2:])
    for name, seed in (("pools/python", "1"), ("held", "2")):
        command = [str(tokenizer_path), str(folder / name), str(folder / "a.bin.zst")]
        command += ["--passes", "1", "--units", "1", "--workers", "1", "--edited", "1"]
        prepare.main([*command, "--natural", "--seed", seed])
    for path in folder.rglob("p*.npz"):  # a small vocabulary, for speed
        parts = dict(np.load(path))
        np.savez(path, **parts | {name: parts[name] % 1024 for name in ("tokens", "old")})
    shape = dataclasses.replace(TINY, vocabulary=1024)
    torch.save({"model": Model(shape).state_dict()}, folder / "tiny.pt")
    config = {
        "weights": str(folder / "tiny.pt"),
        "tokenizer": str(tokenizer_path),
        "shards": str(folder / "pools"),
        "held": str(folder / "held"),
        "edited": str(folder / "held"),
        "tokens": 1024,
        "tokens_a_step": 512,
        "minutes_each": 0,
        "mix": {"python": [1.0, 1]},
        "evaluate": ["--lines", "2", "--edits", "2", "--held-tokens", "500", "--size", "4096"],
        "variants": [
            {"name": "start", "start": True},
            {"name": "turned", "train": ["--turned-share", "0.5"], "fit": "held out"},
            {"name": "three", "evaluate": ["--candidates", "3", "--edits", "0"]},
            {"name": "none", "evaluate": ["--lines", "0"]},
        ],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_variants_are_run_once_and_reported_in_pairs(place, tmp_path, monkeypatch, capsys):

    def run(queue, command, environment, log):
        """Run a command line here: a process of its own would load torch first."""
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        {"training.train": train, "training.evaluate": evaluate}[command[2]].main(command[3:])

    monkeypatch.setattr(ablate.Queue, "execute", run)
    command = [str(place / "config.json"), str(tmp_path), "--devices", "cpu"]
    ablate.main([*command, "--minutes", "0"])  # no time: nothing is begun
    assert not ablate.read_results(tmp_path)
    ablate.main([*command, "--minutes", "10"])
    names = [row["name"] for row in ablate.read_results(tmp_path)]
    assert names == ["start", "turned", "three", "none"]
    assert not list(tmp_path.glob("*/"))  # weights and mixes are gone
    before = (tmp_path / ablate.RESULTS).read_text()
    capsys.readouterr()
    ablate.main([*command, "--minutes", "10"])  # all is done
    assert (tmp_path / ablate.RESULTS).read_text() == before
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == names and "z" not in lines[1]
    assert set(lines[0]["z"]) == {"spm_exact", "psm_exact", "kl", "loss_fresh"}
    assert lines[2]["spm_any_of_3"] >= lines[2]["spm_exact"] and "kl" not in lines[2]
    assert "spm_exact" not in lines[3] and lines[3]["kl"] >= 0
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [run["held_out"] for run in runs["runs"]] == [True] and runs["start"]["py"] > 0


def test_one_of_several_candidates_may_be_the_line(place, tokenizer_path, monkeypatch):
    shards = read_shards(sorted((place / "held").glob("p*.npz")))
    samples = [shards.sample(i) for i in range(len(shards.length))]
    asked = []

    def greedy(model, prompts, max_new, depth, halt, num_forks=0):
        """Write something else first; where a fork has begun, the rest of what stands there."""
        asked.append(num_forks)
        truths = []
        for prompt in prompts:
            ids = next(ids.tolist() for ids, _ in samples if ids[: len(prompt)].tolist() == prompt)
            truths.append(ids[len(prompt) : -1])
        if not num_forks:
            return Answers(truths, [0.0] * len(prompts), [[]] * len(prompts))
        return Answers([[]] * len(prompts), [0.0] * len(prompts), [[t[:1]] for t in truths])

    monkeypatch.setattr(held_lines, "greedy", greedy)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    model = Model(dataclasses.replace(TINY, vocabulary=1024))
    figures, found = held_lines.held_lines(model, tokenizer, place / "held", "spm", 9, 2, 3)
    assert set(asked) == {0, 2} and found["any"].all() and not found["exact"].all()
    assert figures["any_of_3"]["exact"] == 1.0 > figures["exact"]


def test_what_runs_at_the_end_of_the_time_is_stopped(tmp_path):
    args = ablate.argparse.Namespace(out=tmp_path, minutes=0.002)
    queue = ablate.Queue(args, {"variants": []})
    began = time.monotonic()
    with pytest.raises(subprocess.CalledProcessError):
        queue.execute([sys.executable, "-c", "import time; time.sleep(600)"], {}, None)
    assert time.monotonic() - began < 300


def test_shipped_configuration_has_commands_that_parse(tmp_path, monkeypatch):
    config = json.loads((ROOT / "training" / "ablations.json").read_text())
    args = ablate.argparse.Namespace(out=tmp_path, minutes=1)
    monkeypatch.setattr(ablate, "mix", lambda *_: 3)
    queue = ablate.Queue(args, config)
    names = [variant["name"] for variant in config["variants"]]
    assert len(set(names)) == len(names)
    for variant in config["variants"]:
        *training, evaluation = queue.commands(variant, tmp_path)
        assert len(training) == (0 if variant.get("start") else 1)
        for command in training:
            assert train.parse_args(command[3:]).steps == 290
        assert evaluate.parse_args(evaluation[3:]).name == variant["name"]


def test_paired_z_is_the_mean_difference_over_its_error():
    assert ablate.paired_z(np.array([1, 1, 0]), np.array([1, 1, 0])) == 0
    difference = np.array([1.0, 2.0, 3.0])
    assert ablate.paired_z(difference, np.zeros(3)) == pytest.approx(2 * 3**0.5, abs=0.01)
