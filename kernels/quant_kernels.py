# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernel for 4- and 8-bit weights and few rows, and how it reads codes.

Codes become floats without a conversion instruction, which is slow: a code ORed into the mantissa
of a power of two is that power plus the code. Layout: `packed_weights.QuantWeight`.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .early_launch import wait_for_inputs
from .gemv_epilogue import norm_factor, store_row, weight_row


@triton.jit
def code_pair(words, n, T: tl.constexpr, BITS: tl.constexpr):
    """Return codes 2T and 2T + 1 of every word as 256 + code and (4 bits: 16, 8 bits: 256) + code.

    Integer operations run at half the rate of multiply-adds, so one shift serves two 4-bit codes:
    it puts them at bits 15 and 19, whose weight is 1 in the mantissa of 256 and of 16. Masking and
    joining are one instruction if only one operand is an immediate: the powers are made to look
    unknown until run time.
    """
    base256 = tl.where(n > 0, 0x43800000, 0)
    base16 = tl.where(n > 0, 0x41800000, 0)
    if BITS == 4:
        if 8 * T <= 15:
            moved = words << (15 - 8 * T)
        else:
            moved = words >> (8 * T - 15)
        low = (moved & 0x00078000) | base256
        high = (moved & 0x00780000) | base16
    else:
        if T == 0:
            low, high = words << 15, words << 7
        else:
            low, high = words >> 1, words >> 9
        low = (low & 0x007F8000) | base256
        high = (high & 0x007F8000) | base256
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def load_units(
    words, scales, minimums, first_n, end_n, start, n, k, BITS: tl.constexpr, GROUP: tl.constexpr,
    ASYM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr,
    GATED: tl.constexpr = False, HEAD_DIM: tl.constexpr = 0, HALF: tl.constexpr = 0,
):  # fmt: skip
    """Return words (BLOCK_N, BLOCK_U, 4), scales and minimums (BLOCK_N, BLOCK_U) from unit `start`.

    Loaded in shapes for which the compiler (3.6 to 3.9) gives all of them one layout: 16 bytes of
    a unit to a thread, neighbouring units to neighbouring threads. Then nothing passes through
    shared memory. Flat loads leave it no choice of order, and scales hide that they are
    neighbours, or a thread would get several of one row. Zeros, without a load, from `end_n` on.
    """
    UNIT: tl.constexpr = 128 // BITS
    num_words = (
        k // UNIT * 4
    )  # in this form known to be a multiple of 4, so that loads are 16 bytes
    rows = weight_row(first_n + tl.arange(0, BLOCK_N), n, GATED, HEAD_DIM, HALF)
    num_there = tl.where(first_n < end_n, k, 0)
    at_word = start * 4 + tl.arange(0, BLOCK_U * 4)
    packed = tl.load(
        words + rows[:, None] * num_words + at_word[None, :],
        mask=(at_word < num_there // UNIT * 4)[None, :],
        other=0,
        eviction_policy="evict_first",
    )
    scale = 0.0
    minimum = 0.0
    if GROUP > 0:
        flat = tl.arange(0, BLOCK_N * BLOCK_U)
        row = weight_row(first_n + flat // BLOCK_U, n, GATED, HEAD_DIM, HALF)
        unit = start + flat % BLOCK_U
        inside = unit * UNIT < num_there
        at = tl.max_contiguous(row * (k // GROUP) + unit * UNIT // GROUP, 1)
        scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.reshape(scale, [BLOCK_N, BLOCK_U])
        if ASYM:
            minimum = tl.load(minimums + at, mask=inside, other=0.0).to(tl.float32)
            minimum = tl.reshape(minimum, [BLOCK_N, BLOCK_U])
    return tl.reshape(packed, [BLOCK_N, BLOCK_U, 4]), scale, minimum


@triton.jit
def _halves(x, at, inside):
    """Return even and odd columns of eight that follow each other, in float32."""
    # Loaded as eight in a row, which is one 16-byte load a thread, and only then taken apart.
    octets = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(octets, [1, octets.shape[1], 4, 2]))


@triton.jit
def _row_step(
    low, high, x, at, inside, even_gain, odd_gain, acc, offsets, squares,
    LOW: tl.constexpr, HIGH: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Add one pair of codes times one row's activations; and what the offsets add, to subtract."""
    even, odd = _halves(x, at, inside)
    if NORM:
        squares = tl.fma(odd, odd, tl.fma(even, even, squares))
        even *= even_gain
        odd *= odd_gain
    acc = tl.fma(high, odd, tl.fma(low, even, acc))
    return acc, tl.fma(odd, HIGH, tl.fma(even, LOW, offsets)), even + odd, squares


@triton.jit
def _row_end(total, acc, offsets, sums, scale, minimum, GROUP: tl.constexpr, ASYM: tl.constexpr):
    """Add one row's products of a step to its total, scaled if scales belong to groups."""
    part = tl.sum(acc, 2) - tl.sum(offsets, 2)
    if GROUP == 0:
        return total + part
    total = tl.fma(part, scale, total)
    if ASYM:
        total = tl.fma(minimum, tl.sum(sums, 2), total)
    return total


@triton.jit
def _row_value(total, squares, scale, k, eps, GROUP: tl.constexpr, NORM: tl.constexpr):
    """Return the sums of one row over all threads, scaled."""
    value = tl.sum(total, 1)
    if GROUP == 0:
        value *= scale
    if NORM:
        value *= norm_factor(squares, k, eps)
    return value


@triton.jit(do_not_specialize=["repeat", "num_slots", "eps"])
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
    repeat,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # 0: one scale per output feature
    ASYM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # 1 to 4
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
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
    first_n = tl.program_id(0) * (repeat * BLOCK_N)
    end_n = tl.minimum(first_n + repeat * BLOCK_N, n)
    # No kernel writes weights: they may be on their way before this one's inputs are there.
    packed, scale, minimum = load_units(
        words, scales, minimums, first_n, end_n, 0, n, k,
        BITS, GROUP, ASYM, BLOCK_N, BLOCK_U, GATED, HEAD_DIM, APART,
    )  # fmt: skip
    wait_for_inputs(EARLY)
    for block_n in tl.range(first_n, end_n, BLOCK_N, num_stages=1):
        total0 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
        total1 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
        total2 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
        total3 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
        squares0 = tl.zeros([1, BLOCK_U, 4], tl.float32)
        squares1, squares2, squares3 = squares0, squares0, squares0
        for start in tl.range(0, num_units, BLOCK_U, num_stages=1):
            unit = start + tl.arange(0, BLOCK_U)
            inside = unit < num_units
            # What comes next is under way while this is multiplied.
            is_last = start + BLOCK_U >= num_units
            next_n = block_n + tl.where(is_last, BLOCK_N, 0)
            next_packed, next_scale, next_minimum = load_units(
                words, scales, minimums, next_n, end_n, tl.where(is_last, 0, start + BLOCK_U), n, k,
                BITS, GROUP, ASYM, BLOCK_N, BLOCK_U, GATED, HEAD_DIM, APART,
            )  # fmt: skip
            acc0 = tl.zeros([BLOCK_N, BLOCK_U, 4], tl.float32)
            acc1, acc2, acc3 = acc0, acc0, acc0
            off0 = tl.zeros([1, BLOCK_U, 4], tl.float32)
            off1, off2, off3 = off0, off0, off0
            sum0, sum1, sum2, sum3 = off0, off0, off0, off0
            for t in tl.static_range(UNIT // 8):
                low, high = code_pair(packed, n, t, BITS)
                at = unit[None, :, None] * UNIT + 8 * t + tl.arange(0, 8)[None, None, :]
                there = inside[None, :, None]
                even_gain, odd_gain = 1.0, 1.0
                if NORM:
                    even_gain, odd_gain = _halves(gain, at, there)
                acc0, off0, both, squares0 = _row_step(
                    low,
                    high,
                    x,
                    at,
                    there,
                    even_gain,
                    odd_gain,
                    acc0,
                    off0,
                    squares0,
                    LOW,
                    HIGH,
                    NORM,
                )
                sum0 += both
                if ROWS > 1:
                    at += x_stride
                    acc1, off1, both, squares1 = _row_step(
                        low,
                        high,
                        x,
                        at,
                        there,
                        even_gain,
                        odd_gain,
                        acc1,
                        off1,
                        squares1,
                        LOW,
                        HIGH,
                        NORM,
                    )
                    sum1 += both
                if ROWS > 2:
                    at += x_stride
                    acc2, off2, both, squares2 = _row_step(
                        low,
                        high,
                        x,
                        at,
                        there,
                        even_gain,
                        odd_gain,
                        acc2,
                        off2,
                        squares2,
                        LOW,
                        HIGH,
                        NORM,
                    )
                    sum2 += both
                if ROWS > 3:
                    at += x_stride
                    acc3, off3, both, squares3 = _row_step(
                        low,
                        high,
                        x,
                        at,
                        there,
                        even_gain,
                        odd_gain,
                        acc3,
                        off3,
                        squares3,
                        LOW,
                        HIGH,
                        NORM,
                    )
                    sum3 += both
            total0 = _row_end(total0, acc0, off0, sum0, scale, minimum, GROUP, ASYM)
            if ROWS > 1:
                total1 = _row_end(total1, acc1, off1, sum1, scale, minimum, GROUP, ASYM)
            if ROWS > 2:
                total2 = _row_end(total2, acc2, off2, sum2, scale, minimum, GROUP, ASYM)
            if ROWS > 3:
                total3 = _row_end(total3, acc3, off3, sum3, scale, minimum, GROUP, ASYM)
            packed, scale, minimum = next_packed, next_scale, next_minimum
        last = 1.0
        if GROUP == 0:
            at_n = weight_row(block_n + tl.arange(0, BLOCK_N), n, GATED, HEAD_DIM, APART)
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
                cos, sin, block_n, n, num_slots, HAS_BIAS, GATED, HAS_RESIDUAL, NUM_HEADS,
                NUM_KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, BLOCK_N,
            )  # fmt: skip
