"""The kernels' benchmark works, in the interpreter and on tiny shapes; what it says of rivals."""

import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from keyturn.kernels.rotary import reference

pytestmark = pytest.mark.skipif(
    os.environ["TRITON_INTERPRET"] != "1", reason="needs the interpreter"
)
ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_kernels, kernel_timer, kernels_rope_shift = map(
    importlib.import_module, ("bench_kernels", "gpu.kernel_timer", "gpu.kernels_rope_shift")
)
sys.path.remove(str(ROOT / "benchmarks"))

CPU = torch.device("cpu")


def run(monkeypatch, capsys, *options):
    given = [
        "bench_kernels.py",
        "--only",
        "rope_shift",
        "--tiny",
        "--device",
        "cpu",
        "--repeats",
        "2",
        *options,
    ]
    monkeypatch.setattr(sys, "argv", given)
    bench_kernels.main()
    return capsys.readouterr().out.splitlines()


def test_last_line_has_every_run_with_its_times_share_and_error(monkeypatch, capsys) -> None:
    result = json.loads(run(monkeypatch, capsys, "--commit", "abc")[-1])
    (shape,) = result["rope_shift"]["shapes"]
    assert result["benchmark"] == "kernels"
    assert result["commit"] == "abc"
    assert result["versions"]["triton"]
    assert [check["unit"] for check in result["checks"]] == ["of copy bandwidth"]
    assert {"rope_shift", "eager torch"} <= shape["runs"].keys()
    for name, one in shape["runs"].items():
        assert 0 < one["p20_us"] <= one["p50_us"] <= one["p80_us"]
        assert one["share"] > 0
        # Half a unit in the last place of bfloat16, or a whole one: the interpreter truncates.
        assert name.startswith("copy") or 1e-4 < one["error"] < 4e-3
    assert shape["left_out"].keys() >= {"torch.compile"}


def test_sweep_lists_tiles_and_checks_nothing(monkeypatch, capsys) -> None:
    result = json.loads(run(monkeypatch, capsys, "--sweep")[-1])
    assert result["checks"] == []
    assert len(result["rope_shift"]["sweep"][0]["shares"]) == 2


def test_tiny_runs_are_not_saved(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--save")
    assert "--tiny" in capsys.readouterr().err


def flash_attn_apply_rotary(x, cos, sin, interleaved):
    """Accept what flash-attn 2.8 accepts: (batch, positions, heads, head_dim), one dtype."""
    assert x.dtype == cos.dtype == sin.dtype
    assert cos.shape == sin.shape == (x.shape[1], x.shape[3] // 2)
    return reference.apply_rotary(x, cos[:, None], sin[:, None], interleaved)


def liger_rope_forward(q, k, cos, sin):
    """Accept what Liger 0.8 turns in place: (batch, heads, positions, head_dim)."""
    for x in (q, k):
        assert x.transpose(1, 2).is_contiguous()
        assert cos.shape == sin.shape == (1, x.shape[2], x.shape[3])
        half = x.shape[3] // 2
        x.copy_(reference.apply_rotary(x, cos[..., :half], sin[..., :half], False))


def test_rivals_are_given_the_cache_in_their_own_layout(monkeypatch) -> None:
    for module, function, fake in (
        ("flash_attn.ops.triton.rotary", "apply_rotary", flash_attn_apply_rotary),
        ("liger_kernel.ops.rope", "rope_forward", liger_rope_forward),
    ):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[module], function, fake)
    cache = kernels_rope_shift.new_cache(CPU, 2, 3, 17, 16)
    bench = kernel_timer.Bench(CPU, 1, True, False, 1.0)
    measured, left_out = kernels_rope_shift.measure(bench, cache)
    assert left_out.keys() == {"torch.compile"}
    assert measured["Liger"]["error"] < 2e-3
    # Its angles are rounded to bfloat16, ours are not.
    assert 1e-3 < measured["flash-attn"]["error"] < 1e-2


def test_error_counts_every_wrong_element_and_shows_what_was_not_written() -> None:
    cache = kernels_rope_shift.new_cache(CPU, 2, 3, 17, 16)
    candidate = kernels_rope_shift.eager(cache)
    candidate.prepare()
    assert kernels_rope_shift.error_of(candidate, cache) != kernels_rope_shift.error_of(
        candidate, cache
    )  # NaN: nothing was written yet
    candidate.run()
    assert kernels_rope_shift.error_of(candidate, cache) < 2e-3
    cache.rotated[1, 2, 3] = 0
    assert kernels_rope_shift.error_of(candidate, cache) > 0.05


def test_times_are_quantiles_of_one_call() -> None:
    times = kernel_timer.measure({"a": lambda: sum(range(200_000))}, CPU, 5, calls=1)["a"]
    split = kernel_timer.measure({"a": lambda: sum(range(200_000))}, CPU, 5, calls=100)["a"]
    assert times.p20_us <= times.p50_us <= times.p80_us
    assert split.p50_us < times.p50_us / 10
