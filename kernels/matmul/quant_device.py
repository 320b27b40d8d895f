# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernel for 4- and 8-bit weights and one to four rows, on multiply-adds in float32."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from .early_launch import wait_for_inputs
from .epilogue import norm_factor, store_row, weight_row
from .quant_codes import apart, code_pair, load_units, word_scale


@triton.jit
def _octet(x, at, inside, gain, squares, NORM: tl.constexpr):
    """Return eight neighbouring activations of every unit, times the gain, and sums of squares."""
    # Loaded as eight in a row, which is one 16-byte load a thread, and only then taken apart.
    x0, x1, x2, x3, x4, x5, x6, x7 = apart(tl.load(x + at, mask=inside, other=0.0))
    if NORM:
        squares = tl.fma(x3, x3, tl.fma(x2, x2, tl.fma(x1, x1, tl.fma(x0, x0, squares))))
        squares = tl.fma(x7, x7, tl.fma(x6, x6, tl.fma(x5, x5, tl.fma(x4, x4, squares))))
        x0, x1, x2, x3 = x0 * gain[0], x1 * gain[1], x2 * gain[2], x3 * gain[3]
        x4, x5, x6, x7 = x4 * gain[4], x5 * gain[5], x6 * gain[6], x7 * gain[7]
    return (x0, x1, x2, x3, x4, x5, x6, x7), squares


@triton.jit
def _row_step(
    low, high, x, acc, offset, total, P: tl.constexpr, W: tl.constexpr,
    BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Add pair P of codes times one row's activations; and what to subtract, and their sum.

    `x` are the eight activations that this word, 8 bits: the W-th of two words, meets.
    """
    if BITS == 4:
        a, b = x[4 * P % 8 + P // 2], x[4 * P % 8 + P // 2 + 2]
    else:
        a, b = x[4 * W + 2 * P], x[4 * W + 2 * P + 1]
    acc = tl.fma(high, b, tl.fma(low, a, acc))
    return acc, tl.fma(b, HIGH, tl.fma(a, LOW, offset)), total + (a + b)


@triton.jit
def _row_end(total, acc, offset, x_sum, scale, minimum, GROUP: tl.constexpr, ASYM: tl.constexpr):
    """Add one row's products with a word to its total, scaled if scales belong to groups."""
    if GROUP == 0:
        return total + (acc - offset)
    total = tl.fma(acc - offset, scale, total)
    if ASYM:
        total = tl.fma(minimum, x_sum, total)
    return total


@triton.jit
def _row_value(total, squares, scale, k, eps, GROUP: tl.constexpr, NORM: tl.constexpr):
    """Return the sums of one row over all threads, scaled."""
    value = tl.sum(total, 1)
    if GROUP == 0:
        value *= scale
    if NORM:
        value *= norm_factor(squares[:, :, None], k, eps)
    return value


@triton.jit(do_not_specialize=["num_slots", "eps"])
def gemv_kernel(
    x,  # (ROWS, k)
    words,
    scales,
    minimums,
    bias,
    out,  # (ROWS, n)
    n,
    k,
    x_stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # 0: one scale per output feature
    ASYM: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # 1 to 4
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    AHEAD: tl.constexpr,  # whether a step's weights are loaded before the one before is multiplied
    gain=None,  # from here on: `fusion.Fusion`
    residual=None,
    unrotated=None,
    rotated=None,
    values=None,
    slots=None,
    positions=None,
    cos=None,
    sin=None,
    num_slots=0,
    eps=0.0,
    NORM: tl.constexpr = False,
    GATED: tl.constexpr = False,
    HAS_RESIDUAL: tl.constexpr = False,
    NUM_HEADS: tl.constexpr = 0,
    NUM_KV_HEADS: tl.constexpr = 0,
    HEAD_DIM: tl.constexpr = 0,
    HALF: tl.constexpr = 0,
    INTERLEAVED: tl.constexpr = False,
    EARLY: tl.constexpr = False,
):
    """Multiply up to four rows: each thread takes 16 bytes of BLOCK_N weight rows at a time.

    The rows are written out one by one rather than as a dimension: a row's tile, and so the order
    of its sum, must not depend on how many there are.
    """
    UNIT: tl.constexpr = 128 // BITS
    ZERO: tl.constexpr = 0 if ASYM else 2 ** (BITS - 1)
    LOW: tl.constexpr = 256.0 + ZERO
    HIGH: tl.constexpr = (16.0 if BITS == 4 else 256.0) + ZERO
    APART: tl.constexpr = 0 if INTERLEAVED else HALF
    num_units = k // UNIT
    first_n = tl.program_id(0) * BLOCK_N
    # No kernel writes weights: they may be on their way before this one's inputs are there.
    packed, scale, minimum = load_units(
        words, scales, minimums, first_n, 0, n, k,
        BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U, GATED, HEAD_DIM, APART,
    )  # fmt: skip
    wait_for_inputs(EARLY)
    total0 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    total1, total2, total3 = total0, total0, total0
    squares0 = tl.zeros([1, BLOCK_U], tl.float32)
    squares1, squares2, squares3 = squares0, squares0, squares0
    for start in tl.range(0, num_units, BLOCK_U, num_stages=1):
        if AHEAD:
            next_start = start + BLOCK_U
            next_packed, next_scale, next_minimum = load_units(
                words, scales, minimums, first_n, next_start, n, k,
                BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U, GATED, HEAD_DIM, APART,
            )  # fmt: skip
        elif start > 0:
            packed, scale, minimum = load_units(
                words, scales, minimums, first_n, start, n, k,
                BITS, GROUP, ASYM, SPAN, BLOCK_N, BLOCK_U, GATED, HEAD_DIM, APART,
            )  # fmt: skip
        unit = start + tl.arange(0, BLOCK_U)
        inside = (unit < num_units)[None, :, None]
        column = unit // SPAN * (UNIT * SPAN) + unit % SPAN * 8
        first, second = tl.split(tl.reshape(packed, [BLOCK_N, BLOCK_U, 2, 2]))
        word0, word2 = tl.split(first)
        word1, word3 = tl.split(second)
        each = (word0, word1, word2, word3)
        for o in tl.static_range(UNIT // 8):
            at = (column + o * (8 * SPAN))[None, :, None] + tl.arange(0, 8)[None, None, :]
            gains = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
            if NORM:
                gains = apart(tl.load(gain + at, mask=inside, other=0.0))
            x0, squares0 = _octet(x, at, inside, gains, squares0, NORM)
            x1, x2, x3 = x0, x0, x0
            if ROWS > 1:
                x1, squares1 = _octet(x + x_stride, at, inside, gains, squares1, NORM)
            if ROWS > 2:
                x2, squares2 = _octet(x + 2 * x_stride, at, inside, gains, squares2, NORM)
            if ROWS > 3:
                x3, squares3 = _octet(x + 3 * x_stride, at, inside, gains, squares3, NORM)
            for w in tl.static_range(BITS // 4):  # words that meet these eight
                word = each[o * (BITS // 4) + w]
                acc0 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
                acc1, acc2, acc3 = acc0, acc0, acc0
                off0 = tl.zeros([1, BLOCK_U], tl.float32)
                off1, off2, off3 = off0, off0, off0
                sum0, sum1, sum2, sum3 = off0, off0, off0, off0
                for p in tl.static_range(16 // BITS):
                    low, high = code_pair(word, n, p, BITS)
                    acc0, off0, sum0 = _row_step(
                        low, high, x0, acc0, off0, sum0, p, w, BITS, LOW, HIGH
                    )
                    if ROWS > 1:
                        acc1, off1, sum1 = _row_step(
                            low, high, x1, acc1, off1, sum1, p, w, BITS, LOW, HIGH
                        )
                    if ROWS > 2:
                        acc2, off2, sum2 = _row_step(
                            low, high, x2, acc2, off2, sum2, p, w, BITS, LOW, HIGH
                        )
                    if ROWS > 3:
                        acc3, off3, sum3 = _row_step(
                            low, high, x3, acc3, off3, sum3, p, w, BITS, LOW, HIGH
                        )
                of_word, least = 1.0, 0.0
                if GROUP > 0:
                    of_word = word_scale(scale, o * (BITS // 4) + w, GROUP, SPAN)
                if ASYM:
                    least = word_scale(minimum, o * (BITS // 4) + w, GROUP, SPAN)
                total0 = _row_end(total0, acc0, off0, sum0, of_word, least, GROUP, ASYM)
                if ROWS > 1:
                    total1 = _row_end(total1, acc1, off1, sum1, of_word, least, GROUP, ASYM)
                if ROWS > 2:
                    total2 = _row_end(total2, acc2, off2, sum2, of_word, least, GROUP, ASYM)
                if ROWS > 3:
                    total3 = _row_end(total3, acc3, off3, sum3, of_word, least, GROUP, ASYM)
        if AHEAD:
            packed, scale, minimum = next_packed, next_scale, next_minimum
    last = 1.0
    if GROUP == 0:
        at_n = weight_row(first_n + tl.arange(0, BLOCK_N), n, GATED, HEAD_DIM, APART)
        last = tl.load(scales + at_n).to(tl.float32)
    for number in tl.static_range(ROWS):
        if number == 0:
            value = _row_value(total0, squares0, last, k, eps, GROUP, NORM)
        elif number == 1:
            value = _row_value(total1, squares1, last, k, eps, GROUP, NORM)
        elif number == 2:
            value = _row_value(total2, squares2, last, k, eps, GROUP, NORM)
        else:
            value = _row_value(total3, squares3, last, k, eps, GROUP, NORM)
        store_row(
            value, number, bias, residual, out, unrotated, rotated, values, slots, positions,
            cos, sin, first_n, n, num_slots, HAS_BIAS, GATED, HAS_RESIDUAL, NUM_HEADS,
            NUM_KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, BLOCK_N,
        )  # fmt: skip
