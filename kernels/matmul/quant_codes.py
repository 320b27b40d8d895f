# ruff: noqa: ANN001, ANN201, ANN202
"""Device code that loads 4- and 8-bit weights and reads their codes, scales and activations.

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

from .epilogue import weight_row


@triton.jit
def code_pair(words, n, P: tl.constexpr, BITS: tl.constexpr):
    """Return the codes in bits 2 * P * BITS on and (2 * P + 1) * BITS on of every word.

    As 256 + code and (4 bits: 16, 8 bits: 256) + code. Integer operations run at half the rate of
    multiply-adds, so one shift serves two 4-bit codes: it puts them at bits 15 and 19, whose weight
    is 1 in the mantissa of 256 and of 16. Masking and joining are one instruction if only one
    operand is an immediate: the powers are made to look unknown until run time.
    """
    base256 = tl.where(n > 0, 0x43800000, 0)
    base16 = tl.where(n > 0, 0x41800000, 0)
    if BITS == 4:
        if 8 * P <= 15:
            moved = words << (15 - 8 * P)
        else:
            moved = words >> (8 * P - 15)
        low = (moved & 0x00078000) | base256
        high = (moved & 0x00780000) | base16
    else:
        if P == 0:
            low, high = words << 15, words << 7
        else:
            low, high = words >> 1, words >> 9
        low = (low & 0x007F8000) | base256
        high = (high & 0x007F8000) | base256
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def load_units(
    words, scales, minimums, first_n, start, n, k, BITS: tl.constexpr, GROUP: tl.constexpr,
    ASYM: tl.constexpr, SPAN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr,
    GATED: tl.constexpr = False, HEAD_DIM: tl.constexpr = 0, HALF: tl.constexpr = 0,
):  # fmt: skip
    """Return words (BLOCK_N, BLOCK_U * 4) from unit `start`, and what `word_scale` is made of.

    Loaded in shapes for which the compiler (3.6 to 3.9) gives all of them one layout: 16 bytes of
    a unit to a thread, neighbouring units to neighbouring threads. Then nothing passes through
    shared memory. Flat loads leave it no choice of order, and scales hide that they are
    neighbours, or a thread would get several of one row.
    """
    UNIT: tl.constexpr = 128 // BITS
    num_words = (
        k // UNIT * 4
    )  # in this form known to be a multiple of 4, so that loads are 16 bytes
    rows = weight_row(first_n + tl.arange(0, BLOCK_N), n, GATED, HEAD_DIM, HALF)
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
        row = weight_row(first_n + flat // BLOCK_U, n, GATED, HEAD_DIM, HALF)
        unit = start + flat % BLOCK_U
        # A span's scales come together: two or four in one integer.
        TOGETHER: tl.constexpr = GROUP if GROUP > UNIT * SPAN else UNIT * SPAN
        at = row * (k // TOGETHER) + unit // SPAN * (UNIT * SPAN) // TOGETHER
        at = tl.max_contiguous(at, 1)
        inside = unit * UNIT < k
        scale = tl.reshape(tl.load(scales + at, mask=inside, other=0), [BLOCK_N, BLOCK_U])
        if ASYM:
            minimum = tl.load(minimums + at, mask=inside, other=0)
            minimum = tl.reshape(minimum, [BLOCK_N, BLOCK_U])
    return packed, scale, minimum


@triton.jit
def word_scale(scale, I: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr):  # noqa: E741
    """Return the scale, or minimum, of word I of every unit, (BLOCK_N, BLOCK_U) float32."""
    if SPAN == 1 or GROUP >= 128:
        return scale.to(tl.float32)
    else:
        bits = scale >> (16 * (I * 32 // GROUP))
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def apart(octets):
    """Return eight that follow each other, (1, BLOCK_U) each, in float32."""
    even, odd = tl.split(tl.reshape(octets.to(tl.float32), [1, octets.shape[1], 2, 2, 2]))
    a, b = tl.split(even)
    x0, x4 = tl.split(a)
    x2, x6 = tl.split(b)
    a, b = tl.split(odd)
    x1, x5 = tl.split(a)
    x3, x7 = tl.split(b)
    return x0, x1, x2, x3, x4, x5, x6, x7
