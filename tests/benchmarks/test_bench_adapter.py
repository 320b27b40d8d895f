"""The benchmark of adapters: every rank beside none, figures that add up."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bench_adapter = importlib.import_module("bench_adapter")
models = importlib.import_module("models")
sys.path.remove(str(BENCHMARKS))


def test_every_rank_is_held_against_none(monkeypatch, capsys):
    small = models.Shape(2, 64, 96, 2, 1, 32, 320)
    monkeypatch.setattr(bench_adapter, "OWN", {"embedded": small})
    given = "bench_adapter.py --shapes embedded --ranks 3 16 --rounds 2 --steps 1 --context 8"
    monkeypatch.setattr(sys, "argv", given.split())
    bench_adapter.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["rank"] for row in result["rows"]] == [0, 3, 16] * len(bench_adapter.KINDS)
    assert all(row["ms"] > 0 and row["times none"] > 0 for row in result["rows"])
    assert all(row["times none"] == 1 for row in result["rows"] if row["rank"] == 0)
    (check,) = result["checks"]
    assert check["name"] == "embedded, step, rank 16"


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_planes_take_their_bits_their_scales_and_what_is_left_dense(bits):
    shape = models.Shape(1, 128, 192, 2, 1, 64, 300)
    of_layers = 128 * (128 + 2 * 64 + 128 + 2 * 192)  # groups of 128 columns
    of_down, left = 128 * 192, 300 * 128 + 3 * 128 + 256
    expected = (of_layers + of_down) * bits // 8
    expected += 2 * of_layers // 128 + 2 * of_down // 64 + 2 * left
    assert models.planes_bytes(shape, bits) == expected
