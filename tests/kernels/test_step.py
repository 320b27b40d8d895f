"""A decode step's norms, activations and fused products against their references."""

from types import SimpleNamespace

import pytest
import torch

from keyturn.kernels.layer import launch as step
from keyturn.kernels.layer import reference
from keyturn.kernels.matmul import dense as dense_gemv
from keyturn.kernels.matmul import early_launch
from keyturn.kernels.matmul.fusion import CacheRows, Fusion
from keyturn.kernels.matmul.table import GemvTile, Plan
from keyturn.kernels.weights.packed import quantize_groups

from ..tolerance import ONE_ROUNDING
from .ahead_of_time import Case, check_early, compile_all
from .conftest import IS_INTERPRETED

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6
# Packed weights as in test_quant_matmul.py; codes joined with powers of two cost a few bits.
FUSED = ("norm", "gated", "residual", "norm gated")
PRODUCT = {"dense": 1e-6, "q4": 2e-5, "q4 asymmetric": 2e-5, "q8": 2e-5, "q8 per row": 2e-5}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter likes few large programs; two, so that pairs and heads are divided."""
    if IS_INTERPRETED:
        monkeypatch.setattr(
            step, "plan_for", lambda *_: Plan(GemvTile(16, 32, 1, 1), None, None, 4, 0, 5)
        )
        monkeypatch.setattr(dense_gemv, "plan_for", step.plan_for)


def random(*shape, device, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def error(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def allowed(dtype):
    """One rounding; the interpreter truncates to bfloat16 where hardware rounds."""
    return ONE_ROUNDING[dtype] * (2 if IS_INTERPRETED and dtype == torch.bfloat16 else 1) + 1e-6


def make(kind, num_out, num_in, device):
    values = random(num_out, num_in, device=device, seed=1)
    if kind == "dense":
        return values
    bits, symmetric = int(kind[1]), "asymmetric" not in kind
    group = num_in if "per row" in kind else 32
    return quantize_groups(values.float(), bits, group, symmetric=symmetric)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (2, 576), (17, 129), (1, 3584)])
def test_norms_equal_reference(device, dtype, rows, width):
    hidden, update = (random(rows, width, device=device, dtype=dtype, seed=seed) for seed in (0, 1))
    weight = random(width, device=device, dtype=dtype, seed=2)
    found = [step.rms_norm(hidden, weight, EPS), *step.add_rms_norm(hidden, update, weight, EPS)]
    expected = [
        reference.rms_norm(hidden, weight, EPS),
        *reference.add_rms_norm(hidden, update, weight, EPS),
    ]
    if IS_INTERPRETED and dtype == torch.bfloat16:  # so that the norm sees the same sum
        expected[2] = reference.rms_norm(found[1], weight, EPS)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < allowed(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (3, 17), (2, 1025), (17, 129)])
def test_gated_activation_equals_reference(device, dtype, rows, inner):
    gate_up = 3 * random(rows, 2 * inner, device=device, dtype=dtype)
    assert error(step.silu_mul(gate_up), reference.silu_mul(gate_up)) < allowed(dtype)


def test_a_row_has_the_same_bits_whatever_its_batchmates(device):
    hidden, weight = random(5, 96, device=device), random(96, device=device)
    _, together = step.add_rms_norm(hidden, hidden, weight, EPS)
    _, alone = step.add_rms_norm(hidden[2:3], hidden[2:3], weight, EPS)
    assert torch.equal(alone, together[2:3])


def test_no_rows_are_no_launch(device):
    empty = random(0, 8, device=device)
    assert step.silu_mul(empty).shape == (0, 4)
    assert step.rms_norm(empty, empty.new_ones(8), EPS).shape == (0, 8)
    assert step.fused_linear(empty, random(6, 8, device=device)).shape == (0, 6)


@pytest.mark.parametrize(
    ("kind", "rows", "fused"),
    [("dense", rows, fused) for rows in (1, 4) for fused in FUSED]
    + [("q4", 2, fused) for fused in FUSED]
    + [(kind, 1, "norm gated") for kind in ("q4 asymmetric", "q8", "q8 per row")],
)
def test_fused_product_equals_reference(device, kind, rows, fused):
    num_out, num_in = 18, 96
    x = random(rows, num_in, device=device)
    weight = make(kind, num_out, num_in, device)
    bias = random(num_out, device=device)
    gain = random(num_in, device=device) if "norm" in fused else None
    residual = random(rows, num_out, device=device) if fused == "residual" else None
    fusion = Fusion(gain, EPS, gated="gated" in fused, residual=residual)
    found, expected = (
        ops.fused_linear(x, weight, bias, fusion, out_dtype=torch.float32)
        for ops in (step, reference)
    )
    assert error(found, expected) < PRODUCT[kind]
    last = Fusion(gain, EPS, fusion.gated, None if residual is None else residual[-1:])
    alone = step.fused_linear(x[-1:], weight, bias, last, out_dtype=torch.float32)
    assert torch.equal(alone, found[-1:])  # bits do not depend on batchmates
    rounded = step.fused_linear(x, weight, bias, fusion)
    assert rounded.dtype == torch.bfloat16
    assert error(rounded.float(), expected) < allowed(torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "rotary_dim", "interleaved"),
    [("dense", dim, interleaved) for dim in (16, 8) for interleaved in (False, True)]
    + [("q4", 8, False), ("q8", 16, True)],
)
def test_product_into_the_cache_equals_reference(device, kind, rotary_dim, interleaved):
    heads, kv_heads, head_dim, num_slots, num_in = 2, 1, 16, 11, 64
    num_out = (heads + 2 * kv_heads) * head_dim
    weight = make(kind, num_out, num_in, device)
    x, bias = random(2, num_in, device=device), random(num_out, device=device)
    gain = random(num_in, device=device)
    angles = random(40, rotary_dim // 2, device=device, dtype=torch.float32)
    results = []
    for ops in (step, reference):
        caches = [
            torch.full((kv_heads, num_slots, head_dim), 7.0, device=device).bfloat16()
            for _ in range(3)
        ]
        slots, positions = torch.tensor([10, 3]).to(device), torch.tensor([39, 0]).to(device)
        to = CacheRows(*caches, slots, positions, angles.cos(), angles.sin(), interleaved)
        queries = ops.fused_linear(x, weight, bias, Fusion(gain, EPS, cache=to))
        others = [slot for slot in range(num_slots) if slot not in (10, 3)]
        assert all((cache[:, others] == 7).all() for cache in caches)
        results.append([queries, *(cache[:, [10, 3]] for cache in caches)])
    for number, (found, expected) in enumerate(zip(*results, strict=True)):
        # Queries and rotated keys are rounded before they are rotated and after.
        assert error(found, expected) < (2 if number in (0, 2) else 1) * allowed(torch.bfloat16)


def test_error_when_an_argument_does_not_fit(device):
    x, weight = random(2, 64, device=device), random(16, 64, device=device)
    with pytest.raises(ValueError, match="gain"):
        step.fused_linear(x, weight, None, Fusion(x[0, :8], EPS))
    with pytest.raises(ValueError, match="residual"):
        step.fused_linear(x, weight, None, Fusion(residual=x))
    with pytest.raises(ValueError, match="exclude each other"):
        step.fused_linear(x, weight, None, Fusion(gated=True, residual=x[:, :16].contiguous()))
    with pytest.raises(ValueError, match="up to 4 rows"):
        step.fused_linear(random(5, 64, device=device), weight)
    with pytest.raises(ValueError, match="contiguous"):
        step.rms_norm(x[:, ::2], x[0, :32], EPS)
    with pytest.raises(ValueError, match="even"):
        step.silu_mul(x[:, :3].contiguous())


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here():
    rows = ("hidden", "update", "weight", "total", "normed")
    cases = [
        Case(
            "keyturn.kernels.layer.device",
            "add_rms_norm_kernel",
            dict.fromkeys(rows, "*bf16") | {"width": "i32", "eps": "fp32"},
            {"HAS_UPDATE": True, "BLOCK": 4096},
            ["width"],
            {"num_warps": 8},
        ),
        Case(
            "keyturn.kernels.layer.device",
            "silu_mul_kernel",
            {"gate_up": "*bf16", "out": "*bf16", "inner": "i32"},
            {"BLOCK": 1024},
            ["inner"],
        ),
    ]
    halves = ("x", "bias", "out", "gain", "residual", "unrotated", "rotated", "values")
    types = dict.fromkeys(halves, "*bf16") | dict.fromkeys(("slots", "positions"), "*i64")
    types |= {"words": "*i32", "scales": "*i64", "minimums": "*i64", "cos": "*fp32"}
    types |= {"sin": "*fp32", "eps": "fp32"}
    types |= dict.fromkeys(("n", "k", "x_stride", "num_slots"), "i32")
    heads = {"NUM_HEADS": 12, "NUM_KV_HEADS": 2, "HEAD_DIM": 128, "HALF": 64}
    for gated in (False, True):
        constants = {"BITS": 4, "GROUP": 32, "ASYM": False, "SPAN": 4, "HAS_BIAS": True}
        constants |= {"ROWS": 1, "AHEAD": False, "EARLY": True}
        constants |= {"BLOCK_N": 4, "BLOCK_U": 64, "NORM": True, "GATED": gated}
        constants |= {"HAS_RESIDUAL": False, "INTERLEAVED": False}
        constants |= dict.fromkeys(heads, 0) if gated else heads
        cases.append(
            Case(
                "keyturn.kernels.matmul.quant_device",
                "gemv_kernel",
                types,
                constants,
                ["k", "x_stride"],
                {"num_warps": 2},
            )
        )
    for case, compiled in zip(cases, compile_all(cases), strict=True):
        for one in compiled:
            assert one.num_spilled_bytes == 0, (case.kernel, one.num_registers)
            assert ".v4.b32" in one.ptx or case.kernel == "silu_mul_kernel"
            assert one.num_shared_bytes <= 128
            if case.kernel == "gemv_kernel":
                check_early(one)


@pytest.mark.parametrize(
    ("number", "capability", "wanted", "is_early"),
    [
        (101, (9, 0), None, True),
        (102, (9, 0), "0", False),
        (103, (8, 0), None, False),
        (104, (12, 0), "1", True),
    ],
)
def test_products_start_early_from_hopper_on_unless_told_not_to(
    monkeypatch, number, capability, wanted, is_early
):
    # The answer for a device is kept: each case has a device that nobody has.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.delenv(early_launch.VARIABLE, raising=False)
    if wanted:
        monkeypatch.setenv(early_launch.VARIABLE, wanted)
    on_gpu = SimpleNamespace(device=torch.device("cuda", number))
    assert early_launch.early(on_gpu).get("launch_pdl", False) == is_early
    assert early_launch.early(on_gpu)["EARLY"] == is_early
    assert early_launch.early(torch.zeros(1)) == {"EARLY": False}
