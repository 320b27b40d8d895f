# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernels for bit planes and more rows on tensor cores, and for int8 activations."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ..tile_store import store_tile
from .device import code_float, join_planes, load_planes, load_scales, rotated


@triton.jit
def _value(
    joined, scale, n, F: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Return column F of every word: (code - top / 2) * scale, or for int8 2 * code - top."""
    FIRST: tl.constexpr = SPACING * (F % (32 // SPACING)) + F // (32 // SPACING)
    POWER: tl.constexpr = 2.0 ** (8 - SPACING * (F % (8 // SPACING)))
    if dtype == tl.int8:  # in integers, since a conversion is slow; at bit 1 the code is doubled
        double = rotated(joined, 33 - FIRST) & (((1 << BITS) - 1) << 1)
        return (double.to(tl.int32, bitcast=True) - (2**BITS - 1)).to(tl.int8)
    else:
        code = code_float(joined, n, F, BITS, SPACING) - (POWER + (2**BITS - 1) / 2)  # exact
        return (code * scale).to(dtype)


@triton.jit
def _quad(
    joined, scale, n, F: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Return columns F to F + 3 of every word, (BLOCK_N, BLOCK_U, 2, 2), lowest bit first."""
    return tl.join(
        tl.join(
            _value(joined, scale, n, F, BITS, SPACING, dtype),
            _value(joined, scale, n, F + 1, BITS, SPACING, dtype),
        ),
        tl.join(
            _value(joined, scale, n, F + 2, BITS, SPACING, dtype),
            _value(joined, scale, n, F + 3, BITS, SPACING, dtype),
        ),
    )


@triton.jit
def _octet_values(
    words, scale, n, O: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr,  # noqa: E741
    dtype: tl.constexpr,
):  # fmt: skip
    """Return columns 8 * O.. of every word, (BLOCK_N, BLOCK_U, 2, 2, 2), lowest bit first."""
    low = join_planes(words, 8 * O // (32 // SPACING), BITS, SPACING)
    high = low
    if SPACING == 8:  # a word joins four columns
        high = join_planes(words, 2 * O + 1, BITS, SPACING)
    return tl.join(
        _quad(low, scale, n, 8 * O, BITS, SPACING, dtype),
        _quad(high, scale, n, 8 * O + 4, BITS, SPACING, dtype),
    )


@triton.jit
def plane_tile(
    planes, scales, first_n, start, n, k, BITS: tl.constexpr, SPACING: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return values, (BLOCK_N, BLOCK_U * 32), rounded once; without groups bare odd integers."""
    words = load_planes(planes, first_n, start, n, k, BITS, BLOCK_N, BLOCK_U)
    scale = 2.0
    if GROUP > 0:
        scale = load_scales(scales, first_n, start, n, k, GROUP, BLOCK_N, BLOCK_U)
    low = tl.join(
        _octet_values(words, scale, n, 0, BITS, SPACING, dtype),
        _octet_values(words, scale, n, 1, BITS, SPACING, dtype),
    )
    high = tl.join(
        _octet_values(words, scale, n, 2, BITS, SPACING, dtype),
        _octet_values(words, scale, n, 3, BITS, SPACING, dtype),
    )
    # Bits of the column, lowest first, behind row and unit; highest first is their order.
    columns = tl.permute(tl.join(low, high), (0, 1, 6, 5, 4, 3, 2))
    return tl.reshape(columns, [BLOCK_N, BLOCK_U * 32])


@triton.jit
def bit_dot_kernel(
    x,  # (m, k), bf16, fp16 or int8
    x_scales,  # (m,) float32, used with int8
    planes,
    scales,
    bias,
    partials,
    locks,
    out,  # (m, n)
    m,
    n,
    k,
    x_stride,
    BITS: tl.constexpr,
    SPACING: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Multiply up to BLOCK_M rows on tensor cores; int8 activations meet int8 weights."""
    IS_INT8: tl.constexpr = x.dtype.element_ty == tl.int8
    first_n = tl.program_id(0) * BLOCK_N
    at_m = tl.arange(0, BLOCK_M)
    num_steps = tl.cdiv(k // 32, BLOCK_U)
    share = tl.cdiv(num_steps, SPLIT)
    first = tl.program_id(1) * share
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32 if IS_INT8 else tl.float32)
    for step in tl.range(first, tl.minimum(first + share, num_steps), num_stages=STAGES):
        values = plane_tile(
            planes, scales, first_n, step * BLOCK_U, n, k,
            BITS, SPACING, GROUP, BLOCK_N, BLOCK_U, x.dtype.element_ty,
        )  # fmt: skip
        at_k = step * (BLOCK_U * 32) + tl.arange(0, BLOCK_U * 32)
        there = (at_m < m)[:, None] & (at_k < k)[None, :]
        rows = tl.load(x + at_m[:, None] * x_stride + at_k[None, :], mask=there, other=0)
        if WIDEN:  # the interpreter's dot would take bf16's bits for integers
            values, rows = values.to(tl.float32), rows.to(tl.float32)
        acc = tl.dot(values, tl.trans(rows), acc, out_dtype=acc.dtype)
    acc = acc.to(tl.float32)
    at_n = tl.minimum(first_n + tl.arange(0, BLOCK_N), n - 1)
    if GROUP == 0:
        acc *= tl.load(scales + at_n).to(tl.float32)[:, None]
    if IS_INT8:
        acc *= tl.load(x_scales + at_m, mask=at_m < m, other=0.0)[None, :]
    store_tile(acc, partials, locks, bias, out, m, n, HAS_BIAS, SPLIT, BLOCK_N, BLOCK_M)


@triton.jit
def quantize_rows_kernel(
    x,  # (m, k)
    out,  # (m, k) int8
    scales,  # (m,) float32
    k,
    x_stride,
    BLOCK_K: tl.constexpr,
):
    """Round one row to int8 with its own scale."""
    row = tl.program_id(0)
    peak = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        value = tl.load(x + row * x_stride + at, mask=at < k, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(value))
    top = tl.max(peak, 0)
    scale = tl.where(top > 0, tl.div_rn(top, 127.0), 1.0)
    for start in range(0, k, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        value = tl.load(x + row * x_stride + at, mask=at < k, other=0.0).to(tl.float32)
        # Adding and taking away 1.5 * 2 ** 23 rounds to the nearest integer, half to even.
        rounded = (tl.div_rn(value, scale) + 12582912.0) - 12582912.0
        tl.store(out + row * k + at, rounded.to(tl.int8), mask=at < k)
    tl.store(scales + row, scale)
