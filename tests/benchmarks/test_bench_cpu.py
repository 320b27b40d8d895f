"""The CPU benchmark's figures, checks and contenders; the peer itself is not at hand."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_cpu = importlib.import_module("bench_cpu")
cpu_peer = importlib.import_module("cpu.cpu_peer")
sys.path.remove(str(ROOT / "benchmarks"))


def test_last_line_has_every_round_of_a_variant(monkeypatch, capsys, tiny_model):
    given = ["bench_cpu.py", "--model", str(tiny_model), "--contexts", "20", "--decoded", "2"]
    monkeypatch.setattr(sys, "argv", [*given, "--rounds", "2", "--variants", "fp32"])
    bench_cpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(cpu_peer.INSTALL in line for line in lines)
    result = json.loads(lines[-1])
    (run,) = result["runs"]
    assert (run["contender"], run["context"]) == ("fp32", 20)
    assert len(run["prefill_s"]) == len(run["step_ms"]) == 2
    assert run["prefill_tokens_per_s"] == pytest.approx(20 / np.median(run["prefill_s"]))
    assert result["about"]["fp32"]["dtype"] == "float32"
    assert result["checks"] == []  # nothing to compare with


def test_the_faster_peer_is_the_one_to_beat():
    def run(contender, tokens_per_s, step_ms):
        return {
            "contender": contender,
            "context": 256,
            "prefill_tokens_per_s": tokens_per_s,
            "step_ms": [step_ms] * 3,
        }

    q4, q8 = bench_cpu.PEERS
    runs = [run("4-bit", 300.0, 10.0), run("fp32", 900.0, 1.0), run(q4, 100.0, 8.0)]
    checks = bench_cpu.checks([*runs, run(q8, 200.0, 12.0)], [256, 2048])
    assert [(check["value"], check["met"]) for check in checks] == [(1.5, False), (0.8, False)]


def test_a_contender_that_ends_says_why():
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RuntimeError, match="status 1:\nno such model"):
        bench_cpu.Contender("peer", command)


def test_q8_holds_the_same_values_and_metadata(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    kinds = GGMLQuantizationType
    writer = GGUFWriter(tmp_path / "q4.gguf", "llama")
    writer.add_block_count(3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b c"])
    writer.add_tensor("w", quants.quantize(values, kinds.Q4_1), raw_dtype=kinds.Q4_1)
    writer.add_tensor("norm", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cpu_peer.write_q8(tmp_path / "q4.gguf", tmp_path / "q8.gguf")
    before, after = GGUFReader(tmp_path / "q4.gguf"), GGUFReader(tmp_path / "q8.gguf")
    for name in ("general.architecture", "llama.block_count", "tokenizer.ggml.tokens"):
        assert after.fields[name].contents() == before.fields[name].contents()
    weight, norm = after.tensors
    assert weight.tensor_type == kinds.Q8_0
    given = quants.dequantize(before.tensors[0].data, kinds.Q4_1)
    found = quants.dequantize(weight.data, kinds.Q8_0)
    assert np.abs(found - given).max() <= np.abs(given).max() / 127
    assert np.array_equal(norm.data, values[0])
