"""The benchmark of edits on a GPU works on tiny shapes and counts right; an error stops nothing."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_edit_gpu, edit_gpu_models = map(
    importlib.import_module, ("bench_edit_gpu", "gpu.edit_gpu_models")
)
sys.path.remove(str(ROOT / "benchmarks"))


def run(monkeypatch, capsys, *options):
    given = ["bench_edit_gpu.py", "--tiny", "--device", "cpu", "--repeats", "2", *options]
    monkeypatch.setattr(sys, "argv", given)
    bench_edit_gpu.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_edit_has_times_and_the_edited_cache_is_right(monkeypatch, capsys):
    result = run(monkeypatch, capsys, "--only", "1.3b")
    model = result["models"]["1.3b"]
    assert model["edits"].keys() == {
        f"{kind}, {edit}" for kind in ("deletion", "insertion") for edit in ("5 lines", "3 places")
    }
    for figures in (model["full"], *model["edits"].values()):
        assert 0 < figures["p20_ms"] <= figures["p50_ms"] <= figures["p80_ms"]
        assert figures["host_ms"] <= figures["p80_ms"]
    names = {check["name"]: check["met"] for check in result["checks"]}
    assert len(names) == 8
    for name in ("layer 0", "keys", "every layer"):
        assert [met for check, met in names.items() if check.startswith(f"1.3b {name}")] == [True]


def test_one_models_error_is_a_missed_check_and_the_next_one_runs(monkeypatch, capsys):
    make = edit_gpu_models.random_decoder
    calls = []

    def fail_first(*args):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return make(*args)

    monkeypatch.setattr(edit_gpu_models, "random_decoder", fail_first)
    result = run(monkeypatch, capsys, "--only", "33b", "1.3b")
    assert "out of memory" in result["models"]["33b"]["error"]
    assert "full" in result["models"]["1.3b"]
    (check,) = (check for check in result["checks"] if check["name"].startswith("33b"))
    assert check["met"] is False


def test_tiny_runs_are_not_saved(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--save")


@pytest.mark.parametrize(
    ("name", "billion_weights", "floor_ms"),
    [("1.3b", 1.21, 2.0), ("6.7b", 6.48, 7.3), ("33b", 32.9, 23.6)],
)
def test_operations_and_bytes_are_those_of_the_published_shapes(name, billion_weights, floor_ms):
    config = edit_gpu_models.MODELS[name]
    assert edit_gpu_models.layer_weights(config) / 1e9 == pytest.approx(billion_weights, rel=0.01)
    floor = edit_gpu_models.floor_bytes(config, 8192, 2)["insertion"] / 3.0e12
    assert 1e3 * floor == pytest.approx(floor_ms, rel=0.04)


def test_edits_delete_as_many_tokens_at_both_sets_of_places():
    token_ids = np.arange(8192)
    for edit, gone in zip(bench_edit_gpu.edits(8192), (55, 60), strict=True):
        first, second = (edit.without(token_ids, number) for number in (0, 1))
        assert len(first) == len(second) == 8192 - gone
        assert not set(np.setdiff1d(token_ids, first)) & set(np.setdiff1d(token_ids, second))
