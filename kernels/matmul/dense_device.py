# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernel for bf16 and fp16 weights and one to four rows."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .early_launch import wait_for_inputs
from .epilogue import norm_factor, store_row, weight_row


@triton.jit
def _load_tile(
    weight, first_n, start, n, k, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Return weights (BLOCK_N, BLOCK_K) from column `start`."""
    row = weight_row(first_n + tl.arange(0, BLOCK_N), n, GATED, HEAD_DIM, HALF)
    at = start + tl.arange(0, BLOCK_K)[None, :]
    inside = at < k
    # Read once: it should not drive what is read by all out of the second-level cache.
    at += tl.cast(row, tl.int64)[:, None] * k
    return tl.load(weight + at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _pairs(tile, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Take even and odd columns apart, in float32; the eight that a thread loaded stay with it."""
    return tl.split(tl.reshape(tile.to(tl.float32), [ROWS, BLOCK_K // 8, 4, 2]))


@triton.jit
def _row_step(
    even, odd, x, at, inside, even_gain, odd_gain, acc, squares,
    NORM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add one tile's products with one row; and its squares if it is to be normed."""
    even_x, odd_x = _pairs(tl.load(x + at, mask=inside, other=0.0), 1, BLOCK_K)
    if NORM:
        squares = tl.fma(odd_x, odd_x, tl.fma(even_x, even_x, squares))
        even_x *= even_gain
        odd_x *= odd_gain
    return tl.fma(odd, odd_x, tl.fma(even, even_x, acc)), squares


@triton.jit
def _row_end(acc, squares, k, eps, NORM: tl.constexpr):
    value = tl.sum(tl.sum(acc, 2), 1)
    if NORM:
        value *= norm_factor(squares, k, eps)
    return value


@triton.jit(do_not_specialize=["num_slots", "eps"])
def dense_gemv_kernel(
    x,  # (ROWS, k)
    weight,  # (n, k)
    bias,
    gain,
    residual,
    out,
    unrotated,
    rotated,
    values,
    slots,
    positions,
    cos,
    sin,
    n,
    k,
    x_stride,
    num_slots,
    eps,
    HAS_BIAS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,  # 1 to 4
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Multiply up to four rows: each thread takes 16 bytes of BLOCK_N weight rows at a time.

    As in `quant_device.gemv_kernel` rows are written out one by one: a row's tile, and so the
    order of its sum, must not depend on how many there are.
    """
    APART: tl.constexpr = 0 if INTERLEAVED else HALF
    first_n = tl.program_id(0) * BLOCK_N
    # No kernel writes weights: they may be on their way before this one's inputs are there.
    tile = _load_tile(weight, first_n, 0, n, k, BLOCK_N, BLOCK_K, GATED, HEAD_DIM, APART)
    wait_for_inputs(EARLY)
    acc0 = tl.zeros([BLOCK_N, BLOCK_K // 8, 4], tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    squares0 = tl.zeros([1, BLOCK_K // 8, 4], tl.float32)
    squares1, squares2, squares3 = squares0, squares0, squares0
    for start in tl.range(0, k, BLOCK_K, num_stages=1):
        at = start + tl.arange(0, BLOCK_K)[None, :]
        inside = at < k
        # What comes next is under way while this is multiplied.
        next_tile = _load_tile(
            weight, first_n, start + BLOCK_K, n, k, BLOCK_N, BLOCK_K, GATED, HEAD_DIM, APART
        )
        even, odd = _pairs(tile, BLOCK_N, BLOCK_K)
        even_gain, odd_gain = 1.0, 1.0
        if NORM:
            even_gain, odd_gain = _pairs(tl.load(gain + at, mask=inside, other=0.0), 1, BLOCK_K)
        acc0, squares0 = _row_step(
            even, odd, x, at, inside, even_gain, odd_gain, acc0, squares0, NORM, BLOCK_K
        )
        if ROWS > 1:
            acc1, squares1 = _row_step(
                even, odd, x + x_stride, at, inside, even_gain, odd_gain, acc1, squares1,
                NORM, BLOCK_K,
            )  # fmt: skip
        if ROWS > 2:
            acc2, squares2 = _row_step(
                even, odd, x + 2 * x_stride, at, inside, even_gain, odd_gain, acc2, squares2,
                NORM, BLOCK_K,
            )  # fmt: skip
        if ROWS > 3:
            acc3, squares3 = _row_step(
                even, odd, x + 3 * x_stride, at, inside, even_gain, odd_gain, acc3, squares3,
                NORM, BLOCK_K,
            )  # fmt: skip
        tile = next_tile
    for number in tl.static_range(ROWS):
        if number == 0:
            value = _row_end(acc0, squares0, k, eps, NORM)
        elif number == 1:
            value = _row_end(acc1, squares1, k, eps, NORM)
        elif number == 2:
            value = _row_end(acc2, squares2, k, eps, NORM)
        else:
            value = _row_end(acc3, squares3, k, eps, NORM)
        store_row(
            value, number, bias, residual, out, unrotated, rotated, values, slots, positions,
            cos, sin, first_n, n, num_slots, HAS_BIAS, GATED, HAS_RESIDUAL, NUM_HEADS,
            NUM_KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, BLOCK_N,
        )  # fmt: skip
