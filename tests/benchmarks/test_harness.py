import argparse
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
assert spec and spec.loader
harness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(harness)


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(15.0, ">= 15", True), (14.9, ">= 15", False), (3.0, "<= 3", True), (3.1, "<= 3", False)],
)
def test_check_holds_a_figure_against_its_target(value, target, met) -> None:
    assert harness.check("x", value, "s", target)["met"] is met


def test_check_without_a_figure_is_missed() -> None:
    assert harness.check("x", None, "s", "<= 3")["met"] is False


def test_runs_alternate_and_warm_up_is_left_out() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    runs = {"a": lambda: run("a"), "b": lambda: run("b")}
    assert harness.alternate(runs, repeats=2, warm_up=1) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == ["a", "b"] * 3


def test_last_line_is_one_object_and_is_what_is_saved(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    args = argparse.Namespace(seed=3, model="embedded", save=True)
    checks = [harness.check("x", 2.0, "s", "<= 3")]
    harness.finish("demo", args, {"seconds": [2.0]}, checks)
    *people, last = capsys.readouterr().out.splitlines()
    assert people == ["x: 2.0 s (<= 3) met"]
    assert (tmp_path / "results" / "demo.jsonl").read_text() == last + "\n"
    result = json.loads(last)
    assert result["checks"] == checks
    assert {"commit", "machine", "versions", "seed", "seconds"} <= result.keys()
