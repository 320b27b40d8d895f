# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernels for 4- and 8-bit weights and more rows: tensor cores, and plain dequantising."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .quant_codes import code_pair, load_units, word_scale
from .tile_store import store_tile


@triton.jit
def _value_pair(
    packed, n, scale, minimum, P: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ASYM: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return the values of the P-th pair of codes of every word, (BLOCK_N, BLOCK_U, 4, 2)."""
    ZERO: tl.constexpr = 0 if ASYM else 2 ** (BITS - 1)
    low, high = code_pair(packed, n, P, BITS)
    low -= 256.0 + ZERO  # exact
    high -= (16.0 if BITS == 4 else 256.0) + ZERO
    if GROUP > 0:
        low *= scale
        high *= scale
    if ASYM:
        low += minimum
        high += minimum
    return tl.join(low.to(dtype), high.to(dtype))


@triton.jit
def _of_words(scale, GROUP: tl.constexpr, SPAN: tl.constexpr):
    """Return the scale, or minimum, of every word: (BLOCK_N, BLOCK_U, 4) or (.., 1) float32."""
    if SPAN == 1 or GROUP >= 128:
        return word_scale(scale, 0, GROUP, SPAN)[:, :, None]
    else:
        even = tl.join(word_scale(scale, 0, GROUP, SPAN), word_scale(scale, 2, GROUP, SPAN))
        odd = tl.join(word_scale(scale, 1, GROUP, SPAN), word_scale(scale, 3, GROUP, SPAN))
        return tl.reshape(tl.join(even, odd), [scale.shape[0], scale.shape[1], 4])


@triton.jit
def dense_tile(
    words, scales, minimums, first_n, start, n, k,
    BITS: tl.constexpr, GROUP: tl.constexpr, ASYM: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return a tile of values, (BLOCK_N, BLOCK_U * UNIT), rounded once to `dtype`.

    Without groups the scale is left out, so that the values are exact integers. `start` and BLOCK_U
    are whole spans.
    """
    UNIT: tl.constexpr = 128 // BITS
    packed, scale, minimum = load_units(
        words, scales, minimums, first_n, start, n, k, BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U
    )
    packed = tl.reshape(packed, [BLOCK_N, BLOCK_U, 4])
    if GROUP > 0:
        scale = _of_words(scale, GROUP, SPAN)
    if ASYM:
        minimum = _of_words(minimum, GROUP, SPAN)
    pair0 = _value_pair(packed, n, scale, minimum, 0, BITS, GROUP, ASYM, dtype)
    pair1 = _value_pair(packed, n, scale, minimum, 1, BITS, GROUP, ASYM, dtype)
    both = tl.join(pair0, pair1)  # row, unit, word, in the pair, pair % 2
    if BITS == 4:
        pair2 = _value_pair(packed, n, scale, minimum, 2, BITS, GROUP, ASYM, dtype)
        pair3 = _value_pair(packed, n, scale, minimum, 3, BITS, GROUP, ASYM, dtype)
        all4 = tl.join(both, tl.join(pair2, pair3))  # and pair // 2
        # row, span, unit, word, q % 2, q // 2, b to row, span, word, unit, q // 2, q % 2, b
        all4 = tl.reshape(all4, [BLOCK_N, BLOCK_U // SPAN, SPAN, 4, 2, 2, 2])
        return tl.reshape(tl.permute(all4, (0, 1, 3, 2, 5, 4, 6)), [BLOCK_N, BLOCK_U * UNIT])
    else:
        return tl.reshape(tl.permute(both, (0, 1, 2, 4, 3)), [BLOCK_N, BLOCK_U * UNIT])


@triton.jit
def dot_kernel(
    x,  # (m, k)
    words,
    scales,
    minimums,
    bias,
    partials,
    locks,
    out,  # (m, n)
    m,
    n,
    k,
    x_stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ASYM: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Multiply up to BLOCK_M rows on tensor cores, as (weights) @ (activations transposed).

    Weights take the tensor cores' long side, the few rows the side that may be short: more rows
    change BLOCK_M and no row's order of summing.
    """
    UNIT: tl.constexpr = 128 // BITS
    at_m = tl.arange(0, BLOCK_M)
    num_steps = tl.cdiv(k // UNIT, BLOCK_U)
    share = tl.cdiv(num_steps, SPLIT)
    first = tl.program_id(1) * share
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(first, tl.minimum(first + share, num_steps), num_stages=STAGES):
        values = dense_tile(
            words, scales, minimums, tl.program_id(0) * BLOCK_N, step * BLOCK_U, n, k,
            BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U, x.dtype.element_ty,
        )  # fmt: skip
        at_k = step * (BLOCK_U * UNIT) + tl.arange(0, BLOCK_U * UNIT)
        there = (at_m < m)[:, None] & (at_k < k)[None, :]
        rows = tl.load(x + at_m[:, None] * x_stride + at_k[None, :], mask=there, other=0.0)
        if WIDEN:  # the interpreter's dot would take bf16's bits for integers
            values, rows = values.to(tl.float32), rows.to(tl.float32)
        acc = tl.dot(values, tl.trans(rows), acc)
    if GROUP == 0:
        at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc *= tl.load(scales + tl.minimum(at_n, n - 1)).to(tl.float32)[:, None]
    store_tile(acc, partials, locks, bias, out, m, n, HAS_BIAS, SPLIT, BLOCK_N, BLOCK_M)


@triton.jit
def dequantize_kernel(
    words,
    scales,
    minimums,
    out,  # (n, k)
    n,
    k,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ASYM: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Write the values of a packed weight."""
    UNIT: tl.constexpr = 128 // BITS
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    values = dense_tile(
        words, scales, minimums, tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_U, n, k,
        BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U, tl.float32,
    )  # fmt: skip
    if GROUP == 0:
        values *= tl.load(scales + tl.minimum(at_n, n - 1)).to(tl.float32)[:, None]
    at_k = tl.program_id(1) * (BLOCK_U * UNIT) + tl.arange(0, BLOCK_U * UNIT)
    there = (at_n < n)[:, None] & (at_k < k)[None, :]
    at = at_n.to(tl.int64)[:, None] * k + at_k[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=there)
