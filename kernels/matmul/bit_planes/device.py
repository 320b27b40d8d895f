# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernel for bit planes and few rows, and how it reads codes.

Joining: where `packed_weights.BitWeight` puts the bits, masking every plane and ORing them gives
16, 8 or 4 whole codes in a word, without a shift. A rotation then moves up to four of them to where
`quant_codes` has its codes too, in the mantissa of a power of two.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ..quant_codes import apart


@triton.jit
def _plane(acc, word, I: tl.constexpr, R: tl.constexpr, SPACING: tl.constexpr):  # noqa: E741
    """OR a plane's bits of codes R * 32 / SPACING... into `acc`."""
    ONES: tl.constexpr = 0x55555555 if SPACING == 2 else 0x11111111 if SPACING == 4 else 0x01010101
    S: tl.constexpr = (R + I) % SPACING
    return acc | (word & (ONES << S))


@triton.jit
def join_planes(words, R: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr):
    """Return the codes of columns R * 32 / SPACING on, SPACING bits apart from bit R."""
    acc = _plane(_plane(tl.zeros_like(words[0]), words[0], 0, R, SPACING), words[1], 1, R, SPACING)
    if BITS > 2:
        acc = _plane(acc, words[2], 2, R, SPACING)
    if BITS > 3:
        acc = _plane(acc, words[3], 3, R, SPACING)
    if BITS > 4:
        acc = _plane(acc, words[4], 4, R, SPACING)
    if BITS > 5:
        acc = _plane(acc, words[5], 5, R, SPACING)
    if BITS > 6:
        acc = _plane(acc, words[6], 6, R, SPACING)
    if BITS > 7:
        acc = _plane(acc, words[7], 7, R, SPACING)
    return acc


@triton.jit
def rotated(word, COUNT: tl.constexpr):
    """Rotate left."""
    C: tl.constexpr = COUNT % 32
    if C == 0:
        return word
    else:
        return (word << C) | (word >> (32 - C))


@triton.jit
def code_float(joined, n, F: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr):
    """Return column F of every word as 2 ** (8 - SPACING * Q) + code, Q = F modulo 8 / SPACING.

    One rotation serves the 8 / SPACING columns with the same bit 15; the compiler finds it.
    """
    PER_WORD: tl.constexpr = 32 // SPACING
    Q: tl.constexpr = F % (8 // SPACING)
    FIRST: tl.constexpr = SPACING * (F % PER_WORD - Q) + F // PER_WORD
    AT: tl.constexpr = 15 + SPACING * Q
    # Not an immediate: then masking and joining are one instruction, see `quant_codes`.
    base = tl.where(n > 0, (127 + 23 - AT) << 23, 0).to(tl.uint32)
    field = rotated(joined, 15 - FIRST + 32) & (((1 << BITS) - 1) << AT)
    return (field | base).to(tl.float32, bitcast=True)


@triton.jit
def load_planes(
    planes, first_n, start, n, k, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr
):
    """Return eight (BLOCK_N, BLOCK_U) uint32 tensors, those beyond BITS without meaning."""
    # Flat, and hiding that words are neighbours: a word a thread, neighbours to neighbours.
    flat = tl.arange(0, BLOCK_N * BLOCK_U)
    row = tl.minimum(first_n + flat // BLOCK_U, n - 1)
    unit = start + flat % BLOCK_U
    inside = unit < k // 32
    at = tl.max_contiguous(row * (k // 32) + unit, 1)
    planes += at
    stride = n * (k // 32)
    w0 = _load_plane(planes, inside, BLOCK_N, BLOCK_U)
    w1 = _load_plane(planes + stride, inside, BLOCK_N, BLOCK_U)
    w2, w3, w4, w5, w6, w7 = w0, w0, w0, w0, w0, w0
    if BITS > 2:
        w2 = _load_plane(planes + 2 * stride, inside, BLOCK_N, BLOCK_U)
    if BITS > 3:
        w3 = _load_plane(planes + 3 * stride, inside, BLOCK_N, BLOCK_U)
    if BITS > 4:
        w4 = _load_plane(planes + 4 * stride, inside, BLOCK_N, BLOCK_U)
    if BITS > 5:
        w5 = _load_plane(planes + 5 * stride, inside, BLOCK_N, BLOCK_U)
    if BITS > 6:
        w6 = _load_plane(planes + 6 * stride, inside, BLOCK_N, BLOCK_U)
    if BITS > 7:
        w7 = _load_plane(planes + 7 * stride, inside, BLOCK_N, BLOCK_U)
    return w0, w1, w2, w3, w4, w5, w6, w7


@triton.jit
def _load_plane(pointers, inside, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr):
    word = tl.load(pointers, mask=inside, other=0, eviction_policy="evict_first")
    return tl.reshape(word.to(tl.uint32, bitcast=True), [BLOCK_N, BLOCK_U])


@triton.jit
def load_scales(
    scales, first_n, start, n, k, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr
):
    """Return (BLOCK_N, BLOCK_U) scales of groups, doubled: value = 2 * scale * (code - top / 2)."""
    flat = tl.arange(0, BLOCK_N * BLOCK_U)
    row = tl.minimum(first_n + flat // BLOCK_U, n - 1)
    unit = start + flat % BLOCK_U
    at = tl.max_contiguous(row * (k // GROUP) + unit * 32 // GROUP, 1)
    scale = tl.load(scales + at, mask=unit < k // 32, other=0.0).to(tl.float32)
    return tl.reshape(2.0 * scale, [BLOCK_N, BLOCK_U])


@triton.jit
def _octet(pointers, inside):
    """Return eight neighbouring activations of every unit, each (1, BLOCK_U)."""
    return apart(tl.load(pointers, mask=inside, other=0.0))


@triton.jit
def _row_step(code, x, acc, offsets, F: tl.constexpr, BITS: tl.constexpr, SPACING: tl.constexpr):
    """Add a column times its activation; and what the powers of two add, to subtract."""
    OFFSET: tl.constexpr = 2.0 ** (8 - SPACING * (F % (8 // SPACING))) + (2**BITS - 1) / 2
    return tl.fma(code, x, acc), tl.fma(x, OFFSET, offsets)


@triton.jit
def bit_gemv_kernel(
    x,  # (ROWS, k)
    planes,
    scales,
    bias,
    out,
    n,
    k,
    x_stride,
    BITS: tl.constexpr,
    SPACING: tl.constexpr,
    GROUP: tl.constexpr,  # 0: one scale per output feature
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiply up to four rows: each thread takes 32 columns of BLOCK_N weight rows at a time."""
    first_n = tl.program_id(0) * BLOCK_N
    zeros = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    total0, total1, total2, total3 = zeros, zeros, zeros, zeros
    for start in tl.range(0, k // 32, BLOCK_U, num_stages=STAGES):
        words = load_planes(planes, first_n, start, n, k, BITS, BLOCK_N, BLOCK_U)
        acc0, acc1, acc2, acc3 = zeros, zeros, zeros, zeros
        off0 = tl.zeros([1, BLOCK_U], tl.float32)
        off1, off2, off3 = off0, off0, off0
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        inside = unit < k // 32
        at = x + unit * 32 + tl.arange(0, 8)[None, None, :]
        for o in tl.static_range(4):
            x0 = _octet(at + 8 * o, inside)
            x1, x2, x3 = x0, x0, x0
            if ROWS > 1:
                x1 = _octet(at + (x_stride + 8 * o), inside)
            if ROWS > 2:
                x2 = _octet(at + (2 * x_stride + 8 * o), inside)
            if ROWS > 3:
                x3 = _octet(at + (3 * x_stride + 8 * o), inside)
            low = join_planes(words, 8 * o // (32 // SPACING), BITS, SPACING)
            high = low
            if SPACING == 8:  # a word joins four columns
                high = join_planes(words, 2 * o + 1, BITS, SPACING)
            for e in tl.static_range(8):
                if e < 4:
                    code = code_float(low, n, 8 * o + e, BITS, SPACING)
                else:
                    code = code_float(high, n, 8 * o + e, BITS, SPACING)
                acc0, off0 = _row_step(code, x0[e], acc0, off0, e, BITS, SPACING)
                if ROWS > 1:
                    acc1, off1 = _row_step(code, x1[e], acc1, off1, e, BITS, SPACING)
                if ROWS > 2:
                    acc2, off2 = _row_step(code, x2[e], acc2, off2, e, BITS, SPACING)
                if ROWS > 3:
                    acc3, off3 = _row_step(code, x3[e], acc3, off3, e, BITS, SPACING)
        scale = 1.0
        if GROUP > 0:
            scale = load_scales(scales, first_n, start, n, k, GROUP, BLOCK_N, BLOCK_U)
        total0 += (acc0 - off0) * scale
        if ROWS > 1:
            total1 += (acc1 - off1) * scale
        if ROWS > 2:
            total2 += (acc2 - off2) * scale
        if ROWS > 3:
            total3 += (acc3 - off3) * scale
    _store_row(total0, 0, scales, bias, out, n, HAS_BIAS, GROUP, BLOCK_N)
    if ROWS > 1:
        _store_row(total1, 1, scales, bias, out, n, HAS_BIAS, GROUP, BLOCK_N)
    if ROWS > 2:
        _store_row(total2, 2, scales, bias, out, n, HAS_BIAS, GROUP, BLOCK_N)
    if ROWS > 3:
        _store_row(total3, 3, scales, bias, out, n, HAS_BIAS, GROUP, BLOCK_N)


@triton.jit
def _store_row(
    total, row, scales, bias, out, n,
    HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = at_n < n
    value = tl.sum(total, 1)
    if GROUP == 0:
        value *= 2.0 * tl.load(scales + at_n, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + at_n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + at_n, value.to(out.dtype.element_ty), mask=inside)
