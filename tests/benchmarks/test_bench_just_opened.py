"""Places are lines of held-out files, and what is kept is counted among what could be had."""

import importlib
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
bench = importlib.import_module("bench_just_opened")
sys.path.remove(str(ROOT / "benchmarks"))

TEXT = "".join(
    f"def function_{number}(é):\n    return call(é, {number})\n\n" for number in range(99)
)


def files():
    names = ("a/one.py", "a/two.py", "b/three.js", "c/four.ts")
    return [("a", "short.py", "a = 1\n"), *(("a", name, TEXT) for name in names)]


def test_a_place_is_a_file_without_one_line() -> None:
    places = bench.chosen(files(), 4, seed=0)
    assert [place.language_id for place in places[:3]] == ["javascript", "python", "typescript"]
    assert len({place.path for place in places}) == 4
    for place in places:
        lines = place.text.split("\n")
        assert lines[place.row].strip() == "" and len(lines[place.row]) == place.column
        lines[place.row] += place.line
        assert "\n".join(lines) == TEXT
    assert places == bench.chosen(files(), 4, seed=0) != bench.chosen(files(), 4, seed=1)
    assert len(bench.chosen(files(), 9, seed=0)) == 4


def test_a_file_without_a_fit_line_has_no_place() -> None:
    assert bench.without_a_line(random.Random(0), "a.py", "py", "}\n" * 2000) is None


def test_share_is_of_what_is_right_without_a_limit() -> None:
    places = bench.chosen(files(), 4, seed=0)
    right = [bench.Answer(place.line, 10.0) for place in places]
    wrong = [bench.Answer("", 20.0)] * 4
    found = bench.compared(
        places, [right[0], wrong[0], right[2], wrong[0]], [*right[:2], *wrong[:2]]
    )
    assert (found["num_exact"], found["num_exact_unlimited"], found["num_empty"]) == (2, 2, 2)
    assert found["kept_share"] == pytest.approx(0.5)
    assert (found["answer_ms_p50"], found["answer_ms_p95"]) == (15.0, 20.0)
    assert bench.compared(places, right, wrong)["kept_share"] is None
