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
    words, scales, minimums, first_n, start, n, k, BITS: tl.constexpr, GROUP: tl.constexpr,
    ASYM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """Return words (BLOCK_N, BLOCK_U, 4), scales and minimums (BLOCK_N, BLOCK_U) from unit `start`.

    Loaded in shapes for which the compiler (3.6 to 3.9) gives all of them one layout: 16 bytes of
    a unit to a thread, neighbouring units to neighbouring threads. Then nothing passes through
    shared memory. Flat loads leave it no choice of order, and scales hide that they are
    neighbours, or a thread would get several of one row.
    """
    UNIT: tl.constexpr = 128 // BITS
    num_words = (
        k // UNIT * 4
    )  # in this form known to be a multiple of 4, so that loads are 16 bytes
    rows = tl.minimum(first_n + tl.arange(0, BLOCK_N), n - 1)
    at_word = start * 4 + tl.arange(0, BLOCK_U * 4)
    packed = tl.load(
        words + rows[:, None] * num_words + at_word[None, :],
        mask=(at_word < num_words)[None, :],
        other=0,
        eviction_policy="evict_first",
    )
    scale = 0.0
    minimum = 0.0
    if GROUP > 0:
        flat = tl.arange(0, BLOCK_N * BLOCK_U)
        row = tl.minimum(first_n + flat // BLOCK_U, n - 1)
        unit = start + flat % BLOCK_U
        inside = unit * UNIT < k
        at = tl.max_contiguous(row * (k // GROUP) + unit * UNIT // GROUP, 1)
        scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.reshape(scale, [BLOCK_N, BLOCK_U])
        if ASYM:
            minimum = tl.load(minimums + at, mask=inside, other=0.0).to(tl.float32)
            minimum = tl.reshape(minimum, [BLOCK_N, BLOCK_U])
    return tl.reshape(packed, [BLOCK_N, BLOCK_U, 4]), scale, minimum


@triton.jit
def _row_step(low, high, x, at, inside, acc, offsets, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Add one pair of codes times one row's activations; and what the offsets add, to subtract."""
    # Loaded as eight in a row, which is one 16-byte load a thread, and only then taken apart.
    octets = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(octets, [1, octets.shape[1], 4, 2]))
    acc = tl.fma(high, odd, tl.fma(low, even, acc))
    return acc, tl.fma(odd, HIGH, tl.fma(even, LOW, offsets)), even + odd


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
def _store_row(total, row, scale, bias, out, at_n, n, HAS_BIAS: tl.constexpr, GROUP: tl.constexpr):
    value = tl.sum(total, 1)
    if GROUP == 0:
        value *= scale
    if HAS_BIAS:
        value += tl.load(bias + at_n, mask=at_n < n, other=0.0).to(tl.float32)
    tl.store(out + row * n + at_n, value.to(out.dtype.element_ty), mask=at_n < n)


@triton.jit
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
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # 1 to 4
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiply up to four rows: each thread takes 16 bytes of BLOCK_N weight rows at a time.

    The rows are written out one by one rather than as a dimension: a row's tile, and so the order
    of its sum, must not depend on how many there are.
    """
    UNIT: tl.constexpr = 128 // BITS
    ZERO: tl.constexpr = 0 if ASYM else 2 ** (BITS - 1)
    LOW: tl.constexpr = 256.0 + ZERO
    HIGH: tl.constexpr = (16.0 if BITS == 4 else 256.0) + ZERO
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    num_units = k // UNIT
    total0 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    total1 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    total2 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    total3 = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    for start in tl.range(0, num_units, BLOCK_U, num_stages=STAGES):
        unit = start + tl.arange(0, BLOCK_U)
        inside = unit < num_units
        packed, scale, minimum = load_units(
            words, scales, minimums, tl.program_id(0) * BLOCK_N, start, n, k,
            BITS, GROUP, ASYM, BLOCK_N, BLOCK_U,
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
            acc0, off0, both = _row_step(low, high, x, at, there, acc0, off0, LOW, HIGH)
            sum0 += both
            if ROWS > 1:
                at += x_stride
                acc1, off1, both = _row_step(low, high, x, at, there, acc1, off1, LOW, HIGH)
                sum1 += both
            if ROWS > 2:
                at += x_stride
                acc2, off2, both = _row_step(low, high, x, at, there, acc2, off2, LOW, HIGH)
                sum2 += both
            if ROWS > 3:
                at += x_stride
                acc3, off3, both = _row_step(low, high, x, at, there, acc3, off3, LOW, HIGH)
                sum3 += both
        total0 = _row_end(total0, acc0, off0, sum0, scale, minimum, GROUP, ASYM)
        if ROWS > 1:
            total1 = _row_end(total1, acc1, off1, sum1, scale, minimum, GROUP, ASYM)
        if ROWS > 2:
            total2 = _row_end(total2, acc2, off2, sum2, scale, minimum, GROUP, ASYM)
        if ROWS > 3:
            total3 = _row_end(total3, acc3, off3, sum3, scale, minimum, GROUP, ASYM)
    last = 1.0
    if GROUP == 0:
        last = tl.load(scales + tl.minimum(at_n, n - 1)).to(tl.float32)
    _store_row(total0, 0, last, bias, out, at_n, n, HAS_BIAS, GROUP)
    if ROWS > 1:
        _store_row(total1, 1, last, bias, out, at_n, n, HAS_BIAS, GROUP)
    if ROWS > 2:
        _store_row(total2, 2, last, bias, out, at_n, n, HAS_BIAS, GROUP)
    if ROWS > 3:
        _store_row(total3, 3, last, bias, out, at_n, n, HAS_BIAS, GROUP)
