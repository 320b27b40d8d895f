"""The decode benchmark works on a tiny shape, with torch's versions of the ops."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("keyturn.kernels.attention.reference")
ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_decode_gpu = importlib.import_module("bench_decode_gpu")
sys.path.remove(str(ROOT / "benchmarks"))


def run(monkeypatch, capsys, *options):
    given = ["bench_decode_gpu.py", "--tiny", "--device", "cpu", "--repeats", "1", *options]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setenv("KEYTURN_KERNELS", "reference")
    bench_decode_gpu.main()
    return capsys.readouterr().out.splitlines()


def test_last_line_has_every_precision_with_its_time_share_and_error(monkeypatch, capsys) -> None:
    result = json.loads(run(monkeypatch, capsys, "--parts")[-1])
    assert [one["precision"] for one in result["runs"]] == ["bf16", "q8", "q4"]
    for one in result["runs"]:
        assert one["step_us"] > 0
        assert 0 < one["error"] < 0.04
        assert one["parts"].keys() == {"qkv", "attention", "output", "gate_up", "down", "head"}
    assert [check["met"] for check in result["checks"]] == [True]


def test_a_section_that_fails_does_not_end_the_others(monkeypatch, capsys) -> None:
    def fail(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(bench_decode_gpu, "loop", fail)
    result = json.loads(run(monkeypatch, capsys, "--precisions", "bf16")[-1])
    assert "loop_tokens_per_s" not in result["runs"][0]
    assert result["runs"][0]["error"] < 0.04


def test_tiny_runs_are_not_saved(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--save")
    assert "--tiny" in capsys.readouterr().err
