"""4- and 8-bit matmuls against the reference: ragged shapes, row invariance, determinism."""

import itertools

import pytest
import torch

from keyturn.kernels.matmul import quant as kernel
from keyturn.kernels.matmul import reference
from keyturn.kernels.matmul.quant_mma_device import K_WIDTH
from keyturn.kernels.matmul.table import (
    DotTile,
    GemvTile,
    MmaTile,
    choose_plan,
    default_plan,
    plan_for,
)
from keyturn.kernels.weights.packed import QuantWeight, quantize_groups

from .ahead_of_time import Case, compile_all
from .conftest import IS_INTERPRETED

FORMATS = [  # bits, group (0: one scale a row), symmetric
    (4, 32, True),
    (4, 32, False),
    (4, 64, True),
    (4, 64, False),
    (4, 128, True),
    (4, 128, False),
    (8, 32, True),
    (8, 0, True),
]
# The interpreter likes few large programs; a GPU would run out of registers.
GEMV = GemvTile(block_n=32 if IS_INTERPRETED else 4, block_u=32, num_warps=1, ahead=1)
MMA = MmaTile(block_n=32, num_warps=2, ahead=1)
DOT = DotTile(block_n=32, block_u=8, split=3, num_warps=4, num_stages=2)
# Norm of the difference over norm of the expected. gemv multiplies exact weights; dot and dense
# round each to the activations' dtype, and the interpreter rounds bf16 towards zero.
EXACT, ROUNDED = 2e-5, {torch.bfloat16: 6e-3, torch.float16: 1e-3}


# The interpreter's dot is numpy's, whose bits change with the tile's width: for dot from 17 rows
# on, for mma from 9.
MANY = 15 if IS_INTERPRETED else 50


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """What a public call chooses by the number of rows stays; the interpreter gets its tiles."""
    if IS_INTERPRETED:
        monkeypatch.setattr(
            kernel,
            "plan_for",
            lambda *of: plan_for(*of)._replace(gemv=GEMV, mma=MMA, dot=DOT),
        )


def make(num_out, num_in, form, device, seed=0) -> QuantWeight:
    bits, group, symmetric = form
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(num_out, num_in, generator=random)
    return quantize_groups(values, bits, group or num_in, symmetric=symmetric).to(device)


def activations(num_rows, num_in, device, dtype=torch.bfloat16):
    random = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, num_in, generator=random).to(device, dtype)


def error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def run(path, x, weight, bias=None, out_dtype=torch.float32, tile=None):
    """Call one path with a small tile, into a poisoned output."""
    out = torch.full((len(x), weight.shape[0]), torch.nan, dtype=out_dtype, device=x.device)
    step, launch, default = {
        "gemv": (kernel.GEMV_ROWS, kernel.gemv, GEMV),
        "mma": (kernel.MMA_ROWS, kernel.mma, MMA),
        "dot": (kernel.DOT_ROWS, kernel.dot, DOT),
    }[path]
    for first in range(0, len(x), step):
        last = first + step
        launch(x[first:last], weight, bias, out[first:last], tile or default)
    return out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("num_rows", "num_out", "num_in"), [(1, 96, 576 + 64), (3, 129, 128)])
def test_gemv_equals_reference(device, form, num_rows, num_out, num_in):
    weight = make(num_out, num_in, form, device)
    x = activations(num_rows, num_in, device)
    expected = reference.quant_matmul(x, weight, out_dtype=torch.float32)
    assert error(run("gemv", x, weight), expected) < EXACT


MMA_CASES = [
    (at_tile, at_shape, at_form)
    for at_tile, at_shape, at_form in itertools.product(range(3), range(3), range(2))
    # In the interpreter each two of them meet; on a GPU all do.
    if not IS_INTERPRETED or (at_tile + at_shape + at_form) % 2 == 0
]


@pytest.mark.parametrize("case", MMA_CASES, ids=str)
def test_mma_equals_reference(device, case):
    tile = (MMA, MmaTile(16, 4, 2), MmaTile(16, 1, 1))[case[0]]
    num_rows, num_out, num_in = ((1, 17, 128), (3, 96, 640), (16, 7, 1408))[case[1]]
    form = FORMATS[case[2]]
    weight, bias = make(num_out, num_in, form, device), torch.randn(num_out).to(device)
    # Sums of 1,024 + code lose three bits more than those of 128 + code.
    for dtype, limit in ((torch.bfloat16, EXACT), (torch.float16, 8 * EXACT)):
        x = activations(num_rows, num_in, device, dtype)
        expected = reference.quant_matmul(x, weight, bias, out_dtype=torch.float32)
        assert error(run("mma", x, weight, bias, tile=tile), expected) < limit


def test_weights_that_mma_does_not_take_go_elsewhere(device):
    for num_in, form in ((96, FORMATS[0]), (128, FORMATS[2]), (128, FORMATS[6])):
        weight, x = make(32, num_in, form, device), activations(3, num_in, device)
        expected = reference.quant_matmul(x, weight, out_dtype=torch.float32)
        assert error(kernel.quant_matmul(x, weight, out_dtype=torch.float32), expected) < 6e-3
        with pytest.raises(ValueError, match="K in 128s"):
            kernel.quant_matmul(x, weight, path="mma")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("num_rows", "num_out", "num_in"), [(5, 129, 576 + 64), (17, 96, 128)])
def test_dot_equals_reference(device, form, num_rows, num_out, num_in):
    weight = make(num_out, num_in, form, device)
    for at, (dtype, limit) in enumerate(ROUNDED.items()):
        if IS_INTERPRETED and (at + FORMATS.index(form) + (num_rows > 16)) % 2:
            continue  # the other number of rows has this dtype
        x = activations(num_rows, num_in, device, dtype)
        expected = reference.quant_matmul(x, weight, out_dtype=torch.float32)
        found = run("dot", x, weight)
        assert error(found, expected) < (limit if form[1] else EXACT)  # bare codes are exact
    assert not weight.locks.any()


@pytest.mark.parametrize(("num_rows", "num_in"), [(2, 1536), (4, 96), (16, 1536), (64, 96)])
def test_wide_weight_equals_reference(device, num_rows, num_in):
    weight, bias = make(1536, num_in, FORMATS[1], device), torch.randn(1536).to(device)
    x = activations(num_rows, num_in, device)
    expected = reference.quant_matmul(x, weight, bias, out_dtype=torch.float32)
    path, limit = ("gemv", EXACT) if num_rows <= 4 else ("dot", ROUNDED[torch.bfloat16])
    tile = GemvTile(256, 32, 1, 1) if path == "gemv" else DotTile(256, 4, 1, 4, 2)
    tile = tile if IS_INTERPRETED else None
    assert error(run(path, x, weight, bias, tile=tile), expected) < limit


@pytest.mark.parametrize("path", ["gemv", "mma", "dot", "dense", None])
def test_public_call_takes_leading_dimensions_bias_and_dtypes(device, path):
    num_in = 128 if path == "mma" else 96
    weight, bias = make(40, num_in, FORMATS[0], device), torch.randn(40).to(device)
    x = activations(6, num_in, device).view(2, 3, num_in)
    found = kernel.quant_matmul(x, weight, bias, path=path)
    assert (found.shape, found.dtype) == ((2, 3, 40), torch.bfloat16)
    logits = kernel.quant_matmul(x, weight, bias, out_dtype=torch.float32, path=path)
    expected = reference.quant_matmul(x, weight, bias, out_dtype=torch.float32)
    assert logits.dtype == torch.float32
    assert error(logits, expected) < ROUNDED[torch.bfloat16]
    # More than bf16 holds: not a bf16 result converted.
    assert not torch.equal(logits, logits.bfloat16().float())


def test_strided_rows_are_accepted(device):
    weight = make(32, 64, FORMATS[0], device)
    wide = activations(3, 100, device)
    expected = reference.quant_matmul(wide[:, 3:67], weight)
    assert error(kernel.quant_matmul(wide[:, 3:67], weight), expected) < 1e-2
    assert kernel.quant_matmul(wide[:0, :64], weight).shape == (0, 32)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        *((path, FORMATS[at]) for path in ("gemv", "dot") for at in (0, 1, 7)),
        ("mma", FORMATS[0]),
        ("mma", FORMATS[1]),
    ],
)
def test_a_row_has_the_same_bits_whatever_its_batchmates(device, path, form):
    weight = make(65, 256, form, device)
    many = {"gemv": 6, "mma": 7}.get(path, MANY) if IS_INTERPRETED else MANY
    x = activations(many, 256, device)
    together = run(path, x, weight)
    for row in (0, 3, many - 1):
        assert torch.equal(run(path, x[row : row + 1], weight)[0], together[row])
    assert torch.equal(run(path, x[:5], weight), together[:5])
    if not IS_INTERPRETED:  # whose programs come in one order
        assert torch.equal(run(path, x, weight), together)  # and the next time


def test_dequantized_values_equal_reference(device):
    for form in FORMATS:
        weight = make(33, 128, form, device)
        found = kernel.dequantize(weight, torch.float32)
        assert error(found, reference.dequantize(weight)) < 1e-7


def test_error_when_an_argument_does_not_fit(device):
    weight = make(16, 64, FORMATS[0], device)
    x = activations(2, 64, device)
    with pytest.raises(ValueError, match="64 input features"):
        kernel.quant_matmul(x[:, :32], weight)
    with pytest.raises(ValueError, match="bf16 or fp16"):
        kernel.quant_matmul(x.float(), weight)
    with pytest.raises(ValueError, match="bias"):
        kernel.quant_matmul(x, weight, torch.zeros(15).to(device))
    with pytest.raises(ValueError, match="'gemm' is not one of gemv, mma, dot, dense"):
        kernel.quant_matmul(x, weight, path="gemm")


def test_plan_is_the_nearest_measured_shape_of_the_most_specific_gpu(monkeypatch):
    table = {
        "H100": {"q4": {"64x64": [[2, 32, 1, 1], [16, 4, 1], [64, 4, 1, 4, 2], [3, 16, 99]]}},
        "H100 NVL": {
            "q4": {
                "2048x2048": [[4, 64, 2, 1], [16, 4, 1], [64, 4, 2, 4, 3], [4, 16, 65]],
                "18944x3584": [[8, 128, 4, 1], [16, 4, 1], [128, 4, 1, 4, 3], [2, 8, 48]],
            }
        },
    }
    monkeypatch.setattr("keyturn.kernels.matmul.table.MEASURED", table)
    assert choose_plan("NVIDIA H100 NVL", "q4", 16000, 3000).min_dense_rows == 48
    assert choose_plan("NVIDIA H100 PCIe", "q4", 16000, 3000).max_gemv_rows == 3
    assert choose_plan("NVIDIA H100 PCIe", "q8", 16000, 3000) == default_plan("q8", 16000, 3000)
    assert choose_plan("NVIDIA H200", "q4", 16000, 3000).max_gemv_rows == 3  # an H100's
    assert choose_plan("another", "q4", 64, 64) == default_plan("q4", 64, 64)
    choose_plan.cache_clear()


def test_rows_go_to_gemv_where_a_plan_counts_on_mma_in_vain():
    plan = default_plan("q4", 17920, 1536)._replace(max_gemv_rows=0, max_mma_rows=8)
    chosen = [kernel.choose_path(None, rows, plan, True) for rows in (1, 4, 8, 9)]
    assert chosen == ["mma", "mma", "mma", "dot"]
    chosen = [kernel.choose_path(None, rows, plan, False) for rows in (1, 4, 5, 65)]
    assert chosen == ["gemv", "gemv", "dot", "dense"]
    plan = default_plan("q8", 17920, 1536)._replace(max_gemv_rows=2)
    assert [kernel.choose_path(None, rows, plan, False) for rows in (2, 3)] == ["gemv", "dot"]


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here():
    sizes = {"n": "i32", "k": "i32", "x_stride": "i32"}
    cases = []
    for bits, group, symmetric in FORMATS:
        # As for K a multiple of 128: scales of a span come together.
        span = 4 if bits == 4 else 1
        shared = {"BITS": bits, "GROUP": group, "ASYM": not symmetric, "SPAN": span}
        scales = {(4, 32): "*i64", (4, 64): "*i32"}.get((bits, group), "*fp16")
        pointers = {"words": "*i32", "scales": scales, "minimums": scales, "bias": "*bf16"}
        unit = 128 // bits
        tile = default_plan(f"q{bits}", 4096, 4096)
        for rows in (1, 4) if group == 32 else (1,):
            constants = {"ROWS": rows, "BLOCK_N": tile.gemv.block_n, "HAS_BIAS": True}
            constants |= {"BLOCK_U": tile.gemv.block_u, "AHEAD": rows == 1}
            cases.append(
                Case(
                    "keyturn.kernels.matmul.quant_device",
                    "gemv_kernel",
                    {"x": "*bf16", "out": "*bf16"} | pointers | sizes,
                    shared | constants,
                    ["k", "x_stride"],
                    {"num_warps": tile.gemv.num_warps},
                )
            )
        for block_m in (16, 64) if group == 32 else (16,):
            constants = {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_U": 128 // unit, "SPLIT": 2}
            constants |= {"STAGES": 3, "WIDEN": False, "HAS_BIAS": True}
            types = {"x": "*bf16", "partials": "*fp32", "locks": "*i32", "out": "*fp32", "m": "i32"}
            cases.append(
                Case(
                    "keyturn.kernels.matmul.quant_dot_device",
                    "dot_kernel",
                    types | pointers | sizes,
                    shared | constants,
                    ["k", "x_stride"],
                    {"num_warps": 4},
                )
            )
    types = {"words": "*i32", "scales": "*i64", "minimums": "*i64", "out": "*bf16"}
    constants = {"BITS": 4, "GROUP": 32, "ASYM": True, "SPAN": 4, "BLOCK_N": 16, "BLOCK_U": 16}
    cases.append(
        Case(
            "keyturn.kernels.matmul.quant_dot_device",
            "dequantize_kernel",
            types | {"n": "i32", "k": "i32"},
            constants,
            ["k"],
        )
    )
    for symmetric, block_m, mma in (
        (True, 8, MmaTile(16, 8, 1)),
        (True, 16, MmaTile(16, 2, 2)),
        (False, 8, MmaTile(16, 4, 1)),
    ):
        types = {"x": "*i32", "words": "*i32", "scales": "*i32", "minimums": "*i32"}
        constants = {"ASYM": not symmetric, "HAS_BIAS": False, "BLOCK_N": mma.block_n}
        constants |= {"BLOCK_M": block_m, "WARPS": mma.num_warps, "AHEAD": mma.ahead}
        constants |= {"K_WIDTH": K_WIDTH, "WIDEN": False, "dtype": "bfloat16"}
        cases.append(
            Case(
                "keyturn.kernels.matmul.quant_mma_device",
                "mma_kernel",
                types | {"bias": "*bf16", "out": "*bf16", "m": "i32"} | sizes,
                constants,
                ["k", "x_stride"],
                {"num_warps": mma.num_warps},
            )
        )
    for case, compiled in zip(cases, compile_all(cases), strict=True):
        for one in compiled:
            assert one.num_spilled_bytes == 0, (case, one.num_registers)
            if case.kernel == "gemv_kernel":  # weights and activations by 16 bytes
                assert "ld.global.L1::evict_first" in one.ptx
                assert ".v4.b32" in one.ptx
                assert one.num_shared_bytes <= 128  # only the last sum passes shared memory
            if case.kernel == "mma_kernel" and one.capability == 90:
                # Weights, scales and activations go from memory to the tensor cores in registers.
                loop = one.ptx[one.ptx.index("mma.sync") : one.ptx.rindex("mma.sync")]
                assert "shared" not in loop
                assert "shfl" not in loop
