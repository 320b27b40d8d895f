"""4- and 8-bit matmuls against the reference: ragged shapes, row invariance, determinism."""

import pytest
import torch

from keyturn.kernels import quant_matmul as kernel
from keyturn.kernels import reference_matmul as reference
from keyturn.kernels.matmul_table import DotTile, GemvTile, choose_plan, default_plan
from keyturn.kernels.packed_weights import QuantWeight, quantize_groups

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
GEMV = GemvTile(block_n=32 if IS_INTERPRETED else 4, block_u=32, num_warps=1, repeat=2)
DOT = DotTile(block_n=32, block_u=8, split=3, num_warps=4, num_stages=2)
# Norm of the difference over norm of the expected. gemv multiplies exact weights; dot and dense
# round each to the activations' dtype, and the interpreter rounds bf16 towards zero.
EXACT, ROUNDED = 2e-5, {torch.bfloat16: 6e-3, torch.float16: 1e-3}


# The interpreter's dot is numpy's, whose bits change with the tile's width, from 17 rows on.
MANY = 15 if IS_INTERPRETED else 50


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


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("num_rows", "num_out", "num_in"), [(5, 129, 576 + 64), (17, 96, 128)])
def test_dot_equals_reference(device, form, num_rows, num_out, num_in):
    weight = make(num_out, num_in, form, device)
    for dtype, limit in ROUNDED.items():
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


@pytest.mark.parametrize("path", ["gemv", "dot", "dense", None])
def test_public_call_takes_leading_dimensions_bias_and_dtypes(device, path):
    weight, bias = make(40, 96, FORMATS[0], device), torch.randn(40).to(device)
    x = activations(6, 96, device).view(2, 3, 96)
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


@pytest.mark.parametrize("path", ["gemv", "dot"])
@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[1], FORMATS[7]])
def test_a_row_has_the_same_bits_whatever_its_batchmates(device, path, form):
    weight = make(65, 256, form, device)
    x = activations(MANY, 256, device)
    together = run(path, x, weight)
    for row in (0, 3, MANY - 1):
        assert torch.equal(run(path, x[row : row + 1], weight)[0], together[row])
    assert torch.equal(run(path, x[:5], weight), together[:5])
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
    with pytest.raises(ValueError, match="'gemm' is not one of gemv, dot, dense"):
        kernel.quant_matmul(x, weight, path="gemm")


def test_plan_is_the_nearest_measured_shape_of_the_most_specific_gpu(monkeypatch):
    table = {
        "H100": {"q4": {"64x64": [[2, 32, 1, 1], [64, 4, 1, 4, 2], [3, 99]]}},
        "H100 NVL": {
            "q4": {
                "2048x2048": [[4, 64, 2, 1], [64, 4, 2, 4, 3], [4, 65]],
                "18944x3584": [[8, 128, 4, 1], [128, 4, 1, 4, 3], [2, 48]],
            }
        },
    }
    monkeypatch.setattr("keyturn.kernels.matmul_table.MEASURED", table)
    assert choose_plan("NVIDIA H100 NVL", "q4", 16000, 3000).min_dense_rows == 48
    assert choose_plan("NVIDIA H100 PCIe", "q4", 16000, 3000).max_gemv_rows == 3
    assert choose_plan("NVIDIA H100 PCIe", "q8", 16000, 3000) == default_plan("q8", 16000, 3000)
    assert choose_plan("another", "q4", 64, 64) == default_plan("q4", 64, 64)
    choose_plan.cache_clear()


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here():
    pointers = {"words": "*i32", "scales": "*fp16", "minimums": "*fp16", "bias": "*bf16"}
    sizes = {"n": "i32", "k": "i32", "x_stride": "i32"}
    cases = []
    for bits, group, symmetric in FORMATS:
        shared = {"BITS": bits, "GROUP": group, "ASYM": not symmetric}
        unit = 128 // bits
        tile = default_plan(f"q{bits}", 4096, 4096)
        for rows in (1, 4) if group == 32 else (1,):
            constants = {"ROWS": rows, "BLOCK_N": tile.gemv.block_n, "HAS_BIAS": True}
            constants["BLOCK_U"] = tile.gemv.block_u
            cases.append(
                Case(
                    "keyturn.kernels.quant_kernels",
                    "gemv_kernel",
                    {"x": "*bf16", "out": "*bf16", "repeat": "i32"} | pointers | sizes,
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
                    "keyturn.kernels.quant_dot_kernels",
                    "dot_kernel",
                    types | pointers | sizes,
                    shared | constants,
                    ["k", "x_stride"],
                    {"num_warps": 4},
                )
            )
    types = {"words": "*i32", "scales": "*fp16", "minimums": "*fp16", "out": "*bf16"}
    constants = {"BITS": 4, "GROUP": 32, "ASYM": True, "BLOCK_N": 16, "BLOCK_U": 16}
    cases.append(
        Case(
            "keyturn.kernels.quant_dot_kernels",
            "dequantize_kernel",
            types | {"n": "i32", "k": "i32"},
            constants,
            ["k"],
        )
    )
    for case, compiled in zip(cases, compile_all(cases), strict=True):
        for one in compiled:
            assert one.num_spilled_bytes == 0, (case, one.num_registers)
            if case.kernel == "gemv_kernel":  # weights and activations by 16 bytes
                assert "ld.global.L1::evict_first" in one.ptx
                assert ".v4.b32" in one.ptx
                assert one.num_shared_bytes <= 128  # only the last sum passes shared memory
