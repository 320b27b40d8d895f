"""What the benchmark of the stop counts, and that its fit finds what makes completions wrong."""

import importlib
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_stop = importlib.import_module("bench_stop")
sys.path.remove(str(ROOT / "benchmarks"))


def test_counts_of_what_was_ended():
    found = [bench_stop.Written("a", is_right, 5, []) for is_right in (True, True, False, False)]
    scores = [np.array(each, dtype=float) for each in ([0, 0], [0, 9], [9, 0], [0, 0, 0, 9])]
    figures = bench_stop.tried(found, scores, [5.0] * 4)
    assert figures["lost, of right"] == 0.5
    assert figures["before half, of wrong"] == 0.5  # at the first token; at the fourth of 5 is late
    assert figures["ever, of wrong"] == 1.0
    # Rows behind tokens: 4 of a completion of 5; those ended at tokens 1, 0 and 3 have so many.
    assert figures["layer runs, of all"] == (4 + 1 + 0 + 3) / 16
    assert figures["of wrong ones'"] == 3 / 8


def test_fit_finds_what_makes_completions_wrong():
    rng = random.Random(1)
    found = []
    for _ in range(400):
        log_joint, others = -4 * rng.random(), [rng.random() for _ in range(5)]
        is_right = rng.random() < 1 / (1 + math.exp(-3 * log_joint - 6))
        found.append(bench_stop.Written("a", is_right, 1, [[log_joint, *others]]))
    rule = bench_stop.fitted(found)
    assert rule.weights[0] < 0
    assert abs(rule.weights[0]) > 2 * max(map(abs, rule.weights[1:]))
    even = [rule.odds((-2.0, *[0.5] * 5)), rule.odds((-3.5, *[0.5] * 5))]
    assert even[0] == pytest.approx(0, abs=0.7)
    assert even[1] > 1
