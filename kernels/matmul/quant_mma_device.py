# ruff: noqa: ANN001, ANN201, ANN202
"""Triton kernel for 4-bit weights and up to 16 rows: tensor cores, fed from registers.

Weights are the first operand of mma.m16n8k16, of which lane 4g + t holds rows g and g + 8, columns
2t, 2t + 1 and 2t + 8, 2t + 9. A load gives each lane 16 bytes of one row, four lanes to a span of
128 columns. Which columns those are is free as long as activations are dealt alike: in the layout
of `packed_weights.QuantWeight` what a lane loads is what it multiplies, and nothing passes through
shared memory. Codes become bf16 128 + code or fp16 1024 + code, exactly, by one shift and one mask
for two of them; scales belong to groups of 32 columns, two steps of the tensor core, and multiply
their float32 sums: no weight is ever rounded.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# Neighbouring columns in a lane's operand, as the compiler chooses them: 4 in Triton 3.6, 2 in 3.9.
# With another number operands are exchanged between lanes, at a cost in time only.
K_WIDTH = 4 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 2


@triton.jit
def _halves(words, dtype: tl.constexpr):
    """Return the 16 low and the 16 high bits of every word, in a new last dimension."""
    return tl.join(words.to(tl.int16), (words >> 16).to(tl.int16)).to(dtype, bitcast=True)


@triton.jit
def _pair(words, base, Q: tl.constexpr, dtype: tl.constexpr):
    """Return the codes of columns 2Q and 2Q + 1 of every word plus the base, in a new dimension."""
    return _halves(((words >> (4 * Q)) & 0x000F000F) | base, dtype)


# Two dimensions leave the compiler no choice of layout: it deals the last one to a lane's registers
# and to lanes, the rest of the first to lanes, warps and registers in turn.


@triton.jit
def _load_words(words, step, num_spans, H: tl.constexpr, WARPS: tl.constexpr):
    """Return words (H * WARPS * 8, 16): anything past the end."""
    span = step * WARPS + tl.arange(0, H * WARPS * 8)[:, None] // 8 % WARPS
    return tl.load(words + span * 16, mask=span < num_spans, eviction_policy="evict_first")


@triton.jit
def _load_scales(scales, step, num_spans, H: tl.constexpr, WARPS: tl.constexpr):
    """Return pairs of scales (H * WARPS * 32, 2): zero past the end, whatever words are there."""
    span = step * WARPS + tl.arange(0, H * WARPS * 32)[:, None] // 32 % WARPS
    return tl.load(scales + span * 2, mask=span < num_spans, other=0)


@triton.jit
def _load_x(x, step, num_spans, V: tl.constexpr, WARPS: tl.constexpr):
    """Return pairs of activations (V * 4 * WARPS * 8, 16)."""
    flat = tl.arange(0, V * 4 * WARPS * 8)[:, None]
    span = step * WARPS + flat // 8 % WARPS
    group = flat // (8 * WARPS) % 4
    # 64 bits, so that the compiler can make an immediate of it
    return tl.load(x + tl.minimum(span, num_spans - 1) * 64 + (group * 16).to(tl.int64))


@triton.jit
def _factors(scale, H: tl.constexpr, WARPS: tl.constexpr):
    """Return the scale, or minimum, of every group and row, (4, WARPS, H, 8, 4, 1, 1) float32."""
    factor = tl.reshape(_halves(scale, tl.float16).to(tl.float32), [H, WARPS, 8, 4, 4])
    factor = tl.permute(factor, (4, 1, 0, 2, 3))  # h, w, g, t, i: every lane t has its own
    return tl.reshape(factor, [4, WARPS, H, 8, 4, 1, 1])


@triton.jit
def _by_group(part, H: tl.constexpr, V: tl.constexpr, WARPS: tl.constexpr):
    """Return products (4 * WARPS, H * 8, V * 8) as (4, WARPS, H, 8, 4, V, 2)."""
    part = tl.reshape(part, [4, WARPS, H, 8, V, 4, 2])
    return tl.permute(part, (0, 1, 2, 3, 5, 4, 6))


@triton.jit
def _multiply(
    total, packed, scale, minimum, acts, minus, base, ASYM: tl.constexpr, H: tl.constexpr,
    V: tl.constexpr, WARPS: tl.constexpr, K_WIDTH: tl.constexpr, WIDEN: tl.constexpr,
    POWER: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Add one step to the total, (WARPS, H, 8, 4, V, 2): rows h, g and activations v, t, b."""
    # (v, i, w, g, t, e, q, b) to (i, w), (q, t, e, b) or (e, q, t, b), (v, g): i is the group
    acts = tl.reshape(_halves(acts, dtype), [V, 4, WARPS, 8, 4, 2, 2, 2])
    if K_WIDTH == 4:
        acts = tl.permute(acts, (1, 2, 6, 4, 5, 7, 0, 3))
    else:
        acts = tl.permute(acts, (1, 2, 5, 6, 4, 7, 0, 3))
    acts = tl.reshape(acts, [4 * WARPS, 32, V * 8])
    tile = tl.reshape(packed, [H, WARPS, 8, 4, 4])
    low = tl.join(_pair(tile, base, 0, dtype), _pair(tile, base, 1, dtype))
    high = tl.join(_pair(tile, base, 2, dtype), _pair(tile, base, 3, dtype))
    codes = tl.join(low, high)  # (h, w, g, t, i, b, q, e) to (i, w), (h, g), as above
    if K_WIDTH == 4:
        codes = tl.permute(codes, (4, 1, 0, 2, 6, 3, 7, 5))
    else:
        codes = tl.permute(codes, (4, 1, 0, 2, 7, 6, 3, 5))
    codes = tl.reshape(codes, [4 * WARPS, H * 8, 32])
    if WIDEN:  # the interpreter's dot would take bf16's bits for integers
        acts, codes = acts.to(tl.float32), codes.to(tl.float32)
    # What the base and the zero point add, computed once for all weight rows.
    offset = tl.dot(minus, acts)
    offset = tl.broadcast_to(offset[:, None, :, :], [4 * WARPS, H // 2, 16, V * 8])
    offset = tl.reshape(offset, [4 * WARPS, H * 8, V * 8])
    part = _by_group(tl.dot(codes, acts, offset), H, V, WARPS) * _factors(scale, H, WARPS)
    if ASYM:  # then the offset is nothing but the sum of activations, times the power
        sums = _by_group(offset, H, V, WARPS) * (-1.0 / POWER)
        part += sums * _factors(minimum, H, WARPS)
    return total + tl.sum(part, 0)


@triton.jit(do_not_specialize=["m"])
def mma_kernel(
    x,  # (m, k / 2) pairs of bf16 or fp16
    words,  # (n, k / 8)
    scales,  # (n, k / 64) pairs of fp16
    minimums,
    bias,
    out,  # (m, n)
    m,
    n,
    k,
    x_stride,
    ASYM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,  # a multiple of 16
    BLOCK_M: tl.constexpr,  # 8 or 16
    WARPS: tl.constexpr,  # share K; num_warps
    AHEAD: tl.constexpr,  # steps between the load of a weight and its use, 1 or 2
    K_WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    dtype: tl.constexpr,
):
    """Multiply up to BLOCK_M rows; each warp takes every WARPS-th span of 128 columns.

    Rows stand side by side in the tensor cores' short dimension: how many there are changes no
    row's order of summing. Launched early (`early_launch.py`) it takes longer: its programs are
    large, and those of two launches get into each other's way.
    """
    H: tl.constexpr = BLOCK_N // 8
    V: tl.constexpr = BLOCK_M // 8
    POWER: tl.constexpr = 128.0 if dtype == tl.bfloat16 else 1024.0
    num_spans = k // 128
    first_n = tl.program_id(0) * BLOCK_N

    flat = tl.arange(0, H * WARPS * 8)[:, None]
    row = tl.minimum(first_n + flat // (8 * WARPS) * 8 + flat % 8, n - 1)
    words += row * (num_spans * 16) + tl.arange(0, 16)[None, :]
    flat = tl.arange(0, H * WARPS * 32)[:, None]
    row = tl.minimum(first_n + flat // (32 * WARPS) * 8 + flat // 4 % 8, n - 1)
    at = row * (num_spans * 2) + tl.arange(0, 2)[None, :]
    scales += at
    minimums += at
    flat = tl.arange(0, V * 4 * WARPS * 8)[:, None]
    row = tl.minimum(flat // (32 * WARPS) * 8 + flat % 8, m - 1)
    x += row * (x_stride // 2) + tl.arange(0, 16)[None, :]

    # Not an immediate: then masking and joining are one instruction, see `quant_codes`.
    base = tl.where(n > 0, 0x43004300 if dtype == tl.bfloat16 else 0x64006400, 0)
    # Joined, so that the compiler chooses the same layout as for the codes.
    minus = tl.full([4 * WARPS, 16, 16], -POWER if ASYM else -POWER - 8.0, dtype)
    minus = tl.reshape(tl.join(minus, minus), [4 * WARPS, 16, 32])
    if WIDEN:
        minus = minus.to(tl.float32)
    packed = _load_words(words, 0, num_spans, H, WARPS)
    scale = _load_scales(scales, 0, num_spans, H, WARPS)
    minimum, packed1, scale1, minimum1 = scale, packed, scale, scale
    if ASYM:
        minimum = _load_scales(minimums, 0, num_spans, H, WARPS)
    if AHEAD > 1:
        packed1 = _load_words(words, 1, num_spans, H, WARPS)
        scale1 = _load_scales(scales, 1, num_spans, H, WARPS)
        if ASYM:
            minimum1 = _load_scales(minimums, 1, num_spans, H, WARPS)
    acts = _load_x(x, 0, num_spans, V, WARPS)
    total = tl.zeros([WARPS, H, 8, 4, V, 2], tl.float32)
    for step in tl.range(0, tl.cdiv(num_spans, WARPS), num_stages=1):
        packed2 = _load_words(words, step + AHEAD, num_spans, H, WARPS)
        scale2 = _load_scales(scales, step + AHEAD, num_spans, H, WARPS)
        minimum2 = scale2
        if ASYM:
            minimum2 = _load_scales(minimums, step + AHEAD, num_spans, H, WARPS)
        next_acts = _load_x(x, step + 1, num_spans, V, WARPS)
        total = _multiply(
            total, packed, scale, minimum, acts, minus, base,
            ASYM, H, V, WARPS, K_WIDTH, WIDEN, POWER, dtype,
        )  # fmt: skip
        acts = next_acts
        if AHEAD > 1:
            packed, scale, minimum = packed1, scale1, minimum1
            packed1, scale1, minimum1 = packed2, scale2, minimum2
        else:
            packed, scale, minimum = packed2, scale2, minimum2
    value = tl.sum(total, 0)  # the warps', always in the same order: h, g, t, v, b
    value = tl.reshape(tl.permute(value, (0, 1, 3, 2, 4)), [BLOCK_N, BLOCK_M])
    at_n = first_n + tl.arange(0, BLOCK_N)[:, None]
    at_m = tl.arange(0, BLOCK_M)[None, :]
    if HAS_BIAS:
        value += tl.load(bias + at_n, mask=at_n < n, other=0.0).to(tl.float32)
    mask = (at_n < n) & (at_m < m)
    tl.store(out + at_m * n + at_n, value.to(out.dtype.element_ty), mask=mask)
