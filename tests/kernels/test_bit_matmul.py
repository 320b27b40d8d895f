"""Bit-plane matmuls against the reference, with float and int8 activations."""

import itertools

import pytest
import torch

from keyturn.kernels.matmul import reference
from keyturn.kernels.matmul.bit_planes import launch as kernel
from keyturn.kernels.matmul.table import DotTile, GemvTile, plan_for
from keyturn.kernels.weights.packed import BitWeight, plane_spacing, quantize_planes

from .ahead_of_time import Case, compile_all
from .conftest import IS_INTERPRETED

# The interpreter likes few large programs; a GPU would run out of registers.
GEMV = GemvTile(block_n=64 if IS_INTERPRETED else 4, block_u=32, num_warps=1, ahead=0)
DOT = DotTile(block_n=64, block_u=4, split=2, num_warps=4, num_stages=2)
EXACT, ROUNDED = 2e-5, 6e-3  # as in test_quant_matmul.py


# The interpreter's dot is numpy's, whose bits change with the tile's width, from 17 rows on.
MANY = 15 if IS_INTERPRETED else 50


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """What a public call chooses by the number of rows stays; the interpreter gets its tiles."""
    if IS_INTERPRETED:
        monkeypatch.setattr(
            kernel, "plan_for", lambda *of: plan_for(*of)._replace(gemv=GEMV, dot=DOT)
        )


def make(num_out, num_in, bits, device, group=0) -> BitWeight:
    values = torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(0))
    return quantize_planes(values, bits, group or num_in).to(device)


def activations(num_rows, num_in, device):
    random = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, num_in, generator=random).to(device, torch.bfloat16)


def error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def run(path, x, weight, bias=None, x_scales=None):
    """Call one path with a small tile, into a poisoned output."""
    out = torch.full((len(x), weight.shape[0]), torch.nan, device=x.device)
    if path == "gemv":
        for first in range(0, len(x), 4):
            kernel.gemv(x[first : first + 4], weight, bias, out[first : first + 4], GEMV)
    else:
        kernel.dot(x, x_scales, weight, bias, out, DOT)
    return out


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("num_rows", "num_out", "num_in", "group"), [(1, 96, 1056, 0), (2, 65, 96, 32)]
)
def test_gemv_equals_reference(device, bits, num_rows, num_out, num_in, group):
    weight = make(num_out, num_in, bits, device, group)
    x = activations(num_rows, num_in, device)
    expected = reference.bit_matmul(x, weight, out_dtype=torch.float32)
    assert error(run("gemv", x, weight), expected) < EXACT


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("num_rows", "num_out", "num_in", "group"), [(17, 129, 288, 0), (5, 64, 96, 32)]
)
def test_dot_equals_reference(device, bits, num_rows, num_out, num_in, group):
    weight, bias = make(num_out, num_in, bits, device, group), torch.randn(num_out).to(device)
    x = activations(num_rows, num_in, device)
    expected = reference.bit_matmul(x, weight, bias, out_dtype=torch.float32)
    assert error(run("dot", x, weight, bias), expected) < (ROUNDED if group else EXACT)
    assert not weight.locks.any()


# The rows' tile and the number of planes have nothing to do with each other.
INT8_CASES = [(bits, 17) for bits in range(2, 8)] + [(3, 1), (3, 64)]


@pytest.mark.parametrize(
    ("bits", "num_rows"),
    INT8_CASES if IS_INTERPRETED else [*itertools.product(range(2, 8), (1, 17, 64))],
)
def test_int8_activations_equal_reference(device, bits, num_rows):
    weight, bias = make(129, 288, bits, device), torch.randn(129).to(device)
    x, scales = kernel.quantize_rows(activations(num_rows, 288, device))
    expected = reference.bit_matmul_int8(x, scales, weight, bias)
    assert error(run("dot", x, weight, bias, scales), expected) < 1e-6


def test_activations_round_as_in_the_reference(device):
    x = activations(5, 1100, device)
    x[2] = 0
    found, expected = kernel.quantize_rows(x), reference.quantize_rows(x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].abs().amax(-1).tolist() == [127, 127, 0, 127, 127]


@pytest.mark.parametrize("path", ["gemv", "dot"])
def test_a_row_has_the_same_bits_whatever_its_batchmates(device, path):
    many = 6 if IS_INTERPRETED and path == "gemv" else MANY
    weight, x = make(65, 288, 3, device), activations(many, 288, device)
    together = run(path, x, weight)
    for row in (0, 3, many - 1):
        assert torch.equal(run(path, x[row : row + 1], weight)[0], together[row])
    assert torch.equal(run(path, x[:3], weight), together[:3])
    if not IS_INTERPRETED:  # whose programs come in one order
        assert torch.equal(run(path, x, weight), together)  # and the next time


@pytest.mark.parametrize("path", ["gemv", "dot", "dense", None])
def test_public_call_takes_leading_dimensions_and_gives_float32_logits(device, path):
    weight, bias = make(40, 96, 3, device), torch.randn(40).to(device)
    x = activations(6, 96, device).view(2, 3, 96)
    assert kernel.bit_matmul(x, weight, bias, path=path).dtype == torch.bfloat16
    logits = kernel.bit_matmul(x, weight, bias, out_dtype=torch.float32, path=path)
    expected = reference.bit_matmul(x, weight, bias, out_dtype=torch.float32)
    assert error(logits, expected) < ROUNDED
    assert not torch.equal(logits, logits.bfloat16().float())


def test_memory_shrinks_with_the_number_of_bits(device):
    sizes = [make(64, 1024, bits, device).num_bytes for bits in (2, 3, 4, 6, 8)]
    assert sizes == [64 * (1024 * bits // 8 + 2) for bits in (2, 3, 4, 6, 8)]


def test_error_when_int8_activations_do_not_fit(device):
    x, scales = kernel.quantize_rows(activations(2, 64, device))
    with pytest.raises(ValueError, match="8 bits in groups of 64"):
        kernel.bit_matmul_int8(x, scales, make(32, 64, 8, device))
    with pytest.raises(ValueError, match="4 bits in groups of 32"):
        kernel.bit_matmul_int8(x, scales, make(32, 64, 4, device, 32))
    with pytest.raises(ValueError, match="int8 is needed"):
        kernel.bit_matmul_int8(x.float(), scales, make(32, 64, 4, device))
    with pytest.raises(ValueError, match="scales"):
        kernel.bit_matmul_int8(x, scales[:1], make(32, 64, 4, device))


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here():
    pointers = {"planes": "*i32", "scales": "*fp16", "bias": "*bf16", "out": "*fp32"}
    sizes = {"n": "i32", "k": "i32", "x_stride": "i32"}
    cases = []
    for bits in range(2, 9):
        shared = {"BITS": bits, "SPACING": plane_spacing(bits), "HAS_BIAS": True}
        for group in (0, 64) if bits == 4 else (0,):
            constants = {"GROUP": group, "BLOCK_N": 4, "BLOCK_U": 64, "STAGES": 1}
            constants["ROWS"] = 4 if bits == 4 else 1
            cases.append(
                Case(
                    "keyturn.kernels.matmul.bit_planes.device",
                    "bit_gemv_kernel",
                    {"x": "*bf16"} | pointers | sizes,
                    shared | constants,
                    ["k", "x_stride"],
                    {"num_warps": 2},
                )
            )
        for dtype in ("*bf16", "*i8") if bits < 5 else ("*bf16",):
            constants = {"GROUP": 0, "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_U": 4, "SPLIT": 2}
            constants |= {"STAGES": 3, "WIDEN": False}
            types = {"x": dtype, "x_scales": "*fp32", "partials": "*fp32", "locks": "*i32"}
            cases.append(
                Case(
                    "keyturn.kernels.matmul.bit_planes.dot_device",
                    "bit_dot_kernel",
                    types | {"m": "i32"} | pointers | sizes,
                    shared | constants,
                    ["k", "x_stride"],
                    {"num_warps": 4},
                )
            )
    types = {"x": "*bf16", "out": "*i8", "scales": "*fp32", "k": "i32", "x_stride": "i32"}
    cases.append(
        Case(
            "keyturn.kernels.matmul.bit_planes.dot_device",
            "quantize_rows_kernel",
            types,
            {"BLOCK_K": 1024},
            ["k", "x_stride"],
        )
    )
    for case, compiled in zip(cases, compile_all(cases), strict=True):
        for one in compiled:
            assert one.num_spilled_bytes == 0, (case, one.num_registers)
            if case.types["x"] == "*i8":
                assert "mma" in one.ptx
                assert ".s8.s8" in one.ptx
