"""The CPU's projections: every path gives the product, and a row's bits are its own."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from keyturn.kernels.cpu import linear as cpu_linear
from keyturn.kernels.cpu.linear import CpuHead, CpuLinear, CpuPlan, choose_plan
from keyturn.kernels.weights.blocks import BlockMatrix
from keyturn.kernels.weights.linear import FEW_ROWS

from ..tolerance import ONE_ROUNDING, assert_close
from .test_linear import blocks

KINDS = ["Q4_0", "Q4_1", "Q8_0"]
# Whether this CPU can, decides what is tried.
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_INT4 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
MANY = 1000

PLANS = {
    "4-bit": CpuPlan(torch.bfloat16, MANY, HAS_AVX512, ""),
    "bf16 ordered": CpuPlan(torch.bfloat16, 0, True, ""),
    "bf16 plain": CpuPlan(torch.bfloat16, 0, False, ""),
    "fp32 ordered": CpuPlan(torch.float32, 0, True, ""),
    "fp32 plain": CpuPlan(torch.float32, 0, False, ""),
}


@pytest.fixture(params=PLANS)
def plan(request):
    if request.param == "4-bit" and not HAS_INT4:
        pytest.skip("torch has no 4-bit product for this CPU, only a slow reference")
    chosen = PLANS[request.param]
    if chosen.is_prepacked and not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    if chosen.is_prepacked and chosen.dtype == torch.bfloat16 and not HAS_AVX512:
        pytest.skip("oneDNN refuses bfloat16 below AVX-512")
    return chosen


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "dense"])
@pytest.mark.parametrize("num_out", [80, 83])  # the second is not what the 4-bit op takes
def test_every_path_gives_the_product_of_the_values(plan, kind, num_out, has_bias):
    matrix = blocks("Q8_0" if kind == "dense" else kind, num_out, 96)
    values = matrix.values(torch.float32)
    if kind == "dense":
        matrix = values.to(plan.dtype)
    bias = torch.randn(num_out) if has_bias else None
    linear = CpuLinear(matrix, bias, plan)
    assert (linear.num_out, linear.num_in) == (num_out, 96)
    for count in (1, 2, 3, 5, 17, 64):
        x = torch.randn(count, 96).to(plan.dtype)
        exact = x.double() @ values.double().T + (0 if bias is None else bias.double())
        found = linear(x)
        assert found.dtype == plan.dtype
        assert_close(found, exact, plan.dtype)
        assert torch.equal(linear(x.view(1, count, 96), torch.float32)[0], found.float())


@pytest.fixture
def one_thread_for_mkl(plan):
    """MKL splits few rows among threads, and what is left over it sums in another order."""
    count = torch.get_num_threads()
    if plan == PLANS["fp32 plain"]:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("one_thread_for_mkl")
@pytest.mark.parametrize("shape", [(96, 576), (64, 1536), (32, 2048)], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(plan, shape):
    linear = CpuLinear(blocks("Q4_1", *shape), None, plan)
    x = torch.randn(65, shape[1], generator=torch.Generator().manual_seed(0)).to(plan.dtype)
    alone = linear(x[:1])
    for others in (2, 3, 8, 17, 64):
        for at in (0, others):  # first of them and last
            rows = torch.cat([x[1 : 1 + at], x[:1], x[1 + at : 1 + others]])
            found, where = linear(rows)[at], f"{at} of {others}"
            if plan is PLANS["fp32 plain"] and others > 8:
                # Some processors' MKL sums many rows in another order.
                torch.testing.assert_close(found, alone[0], rtol=1e-5, atol=1e-4, msg=where)
            else:
                assert torch.equal(found, alone[0]), where


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_four_bit_codes_stay_what_they_are(kind):
    if not HAS_INT4:
        pytest.skip("torch has no 4-bit product for this CPU, only a slow reference")
    matrix = blocks(kind, 80, 64)
    linear = CpuLinear(matrix, None, PLANS["4-bit"])
    # Rows of the identity read the columns: only scale and zero are rounded, and then the sum.
    found = linear(torch.eye(64).bfloat16()).T.double()
    codes, scales, minimums = matrix.parts()
    groups = codes.double().view(80, 2, 32)
    scale, zero = scales.bfloat16().double()[..., None], 0.0
    if minimums is not None:
        zero = (8 * scales.float() + minimums.float()).bfloat16().double()[..., None]
    expected = ((groups - 8) * scale + zero).view(80, 64)
    # Two roundings: the op turns the weight into bfloat16 before it multiplies, or not.
    bound = 2 * ONE_ROUNDING[torch.bfloat16] * expected.abs().max()
    assert (found - expected).abs().max() <= bound


@pytest.mark.parametrize(
    ("dtype", "capability", "has_bfloat16", "max_int4_rows"),
    [
        (torch.bfloat16, "AVX512", True, 4),
        (torch.bfloat16, "AVX512", False, 12),
        (torch.bfloat16, "AVX2", False, 12),
        (torch.bfloat16, "DEFAULT", False, 0),
        (torch.float32, "AVX512", True, 0),
        (torch.float32, "AVX2", False, 0),
        (torch.float32, "DEFAULT", False, 0),
    ],
)
def test_plan_for_a_described_cpu(dtype, capability, has_bfloat16, max_int4_rows, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    plan = choose_plan(dtype, capability=capability, has_bfloat16=has_bfloat16)
    is_prepacked = capability == "AVX512" or (capability == "AVX2" and dtype == torch.float32)
    assert (plan.dtype, plan.max_int4_rows) == (dtype, max_int4_rows)
    assert plan.is_prepacked == is_prepacked
    assert capability in plan.why and ("4-bit" in plan.why) == bool(max_int4_rows)
    assert ("oneDNN" in plan.why) == is_prepacked


def test_without_onednn_nothing_is_ordered(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not choose_plan(torch.float32, capability="AVX512", has_bfloat16=True).is_prepacked


def test_onednn_that_is_kept_from_bfloat16_orders_none():
    """With it every product failed."""
    script = """
import torch
from keyturn.kernels.cpu.linear import CpuLinear, choose_plan
plan = choose_plan(torch.bfloat16)
assert not plan.is_prepacked, plan
CpuLinear(torch.ones(32, 64), None, plan)(torch.ones(40, 64, dtype=torch.bfloat16))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_plan_for_this_cpu_works(dtype):
    linear = CpuLinear(blocks("Q4_1", 48, 64), None, choose_plan(dtype))
    values = blocks("Q4_1", 48, 64).values(torch.float32).double()
    for count in (1, 4, 5, 12, 13, 40):
        x = torch.randn(count, 64).to(dtype)
        assert_close(linear(x), x.double() @ values.T, dtype)


def test_a_dense_matrix_is_not_kept_beside_its_ordered_copy(plan):
    matrix = torch.randn(64, 96).to(plan.dtype)
    kept = weakref.ref(matrix)
    linear = CpuLinear(matrix, None, plan)
    del matrix
    assert kept() is not None
    linear(torch.randn(64, 96).to(plan.dtype))
    gc.collect()
    if plan.is_prepacked:
        assert kept() is None
    assert linear(torch.randn(2, 96).to(plan.dtype)).shape == (2, 64)


def test_weights_are_packed_as_the_rows_need_and_once(monkeypatch):
    dense, codes = [], []
    values_of, parts = cpu_linear.values_of, BlockMatrix.parts
    monkeypatch.setattr(cpu_linear, "values_of", lambda *of: dense.append(1) or values_of(*of))
    monkeypatch.setattr(BlockMatrix, "parts", lambda matrix: codes.append(1) or parts(matrix))
    linear = CpuLinear(blocks("Q4_1", 48, 64), None, CpuPlan(torch.bfloat16, 4, False, ""))
    for rows, num_dense in ((4, 0), (1, 0), (5, 1), (64, 1), (9, 1), (2, 1)):
        linear(torch.randn(rows, 64).bfloat16())
        assert (len(codes), len(dense)) == (1, num_dense)


@pytest.mark.parametrize("kind", ["Q4_1", "dense"])
def test_the_largest_logits_of_few_rows_are_exact(plan, kind):
    matrix = blocks("Q4_1", 512, 64)
    values = matrix.values(torch.float32).to(plan.dtype if kind == "dense" else torch.float32)
    head = CpuHead(values if kind == "dense" else matrix, plan)
    for count in (1, FEW_ROWS, FEW_ROWS + 3):
        x = torch.randn(count, 64).to(plan.dtype)
        exact = x.double() @ values.double().T
        found = head(x, torch.float32)
        assert found.dtype == torch.float32
        top = found.topk(8)
        assert torch.equal(top.indices[:, 0], exact.argmax(1))
        assert_close(top.values, exact.gather(1, top.indices), torch.float32)
        assert_close(found, exact, plan.dtype)
        assert head(x).dtype == plan.dtype
