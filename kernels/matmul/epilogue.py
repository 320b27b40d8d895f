# ruff: noqa: ANN001, ANN201, ANN202
"""Device code around the sums of a matrix-vector product; `fusion.Fusion` says what it does."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weight_row(index, n, GATED: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Return which of the weight's n rows comes `index`-th.

    What an epilogue takes in pairs, a gate and what passes it or two dimensions rotated together,
    must end in one program: such rows come alternately. HALF is 0 unless pairs are half a head
    apart; dimensions past the rotated ones are neighbours.
    """
    index = tl.minimum(index, n - 1)
    pair = index // 2
    is_second = index % 2
    if GATED:
        return pair + is_second * (n // 2)
    if HALF:
        in_head = pair % (HEAD_DIM // 2)
        first = tl.where(in_head < HALF, in_head, 2 * in_head)
        apart = tl.where(in_head < HALF, HALF, 1)
        return pair // (HEAD_DIM // 2) * HEAD_DIM + first + is_second * apart
    return index


@triton.jit
def norm_factor(squares, k, eps):
    """Return one over the root of the mean square of a row, from its partial sums."""
    total = tl.sum(tl.sum(tl.sum(squares, 2), 1), 0)
    return 1.0 / tl.sqrt(total / k + eps)


@triton.jit
def store_row(
    value,  # (BLOCK_N,) float32
    row,
    bias,
    residual,
    out,
    unrotated,
    rotated,
    values,
    slots,
    positions,
    cos,
    sin,
    first_n,
    n,
    num_slots,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,  # 0: no rotation, no cache
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Finish BLOCK_N sums of one row and store what becomes of them."""
    index = first_n + tl.arange(0, BLOCK_N)
    if HAS_BIAS:
        at = weight_row(index, n, GATED, HEAD_DIM, 0 if INTERLEAVED else HALF)
        value += tl.load(bias + at).to(tl.float32)
    if NUM_KV_HEADS:
        first, second = tl.split(tl.reshape(value, [BLOCK_N // 2, 2]))
        _store_heads(
            first, second, row, out, unrotated, rotated, values, slots, positions, cos, sin,
            first_n // 2 + tl.arange(0, BLOCK_N // 2), n // 2, num_slots,
            NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HALF, INTERLEAVED,
        )  # fmt: skip
    elif GATED:
        gate, up = tl.split(tl.reshape(value, [BLOCK_N // 2, 2]))
        index = first_n // 2 + tl.arange(0, BLOCK_N // 2)
        passed = gate / (1.0 + tl.exp(-gate)) * up
        at = row * (n // 2) + index
        tl.store(out + at, passed.to(out.dtype.element_ty), mask=index < n // 2)
    else:
        at = row * n + index
        if HAS_RESIDUAL:
            value += tl.load(residual + at, mask=index < n, other=0.0).to(tl.float32)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=index < n)


@triton.jit
def _store_heads(
    first,
    second,
    row,
    queries,
    unrotated,
    rotated,
    values,
    slots,
    positions,
    cos,
    sin,
    pair,
    num_pairs,
    num_slots,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Rotate pairs of dimensions of any heads and store them where each head belongs."""
    dtype = queries.dtype.element_ty
    first, second = first.to(dtype), second.to(dtype)
    inside = pair < num_pairs
    head = pair // (HEAD_DIM // 2)
    in_head = pair % (HEAD_DIM // 2)
    is_query = inside & (head < NUM_HEADS)
    is_value = inside & (head >= NUM_HEADS + NUM_KV_HEADS)
    is_key = inside & (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    is_turned = (in_head < HALF) & (is_query | is_key)
    angle = tl.load(positions + row) * HALF + in_head
    c = tl.load(cos + angle, mask=is_turned, other=1.0)
    s = tl.load(sin + angle, mask=is_turned, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    turned_first, turned_second = (a * c - b * s).to(dtype), (b * c + a * s).to(dtype)
    is_far = (in_head < HALF) & (not INTERLEAVED)  # the pair's members are half a head apart
    dim = tl.where(is_far, in_head, 2 * in_head)
    apart = tl.where(is_far, HALF, 1)
    at = (row * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(queries + at, turned_first, mask=is_query)
    tl.store(queries + at + apart, turned_second, mask=is_query)
    kv_head = tl.cast((head - NUM_HEADS) % NUM_KV_HEADS, tl.int64)
    at = (kv_head * num_slots + tl.load(slots + row)) * HEAD_DIM + dim
    tl.store(unrotated + at, first, mask=is_key)
    tl.store(unrotated + at + apart, second, mask=is_key)
    tl.store(rotated + at, turned_first, mask=is_key)
    tl.store(rotated + at + apart, turned_second, mask=is_key)
    tl.store(values + at, first, mask=is_value)
    tl.store(values + at + apart, second, mask=is_value)
