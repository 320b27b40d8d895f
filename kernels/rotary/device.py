"""Device code of `launch.py`: a turn over all layers and heads; one layer's rows written."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_pairs(
    heads: tl.tensor,
    listed: tl.tensor,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return both members of every pair, twice (ROWS, HALF_PAD), in the cache's dtype.

    `heads` points to (ROWS, 1) first dimensions, `listed` is (ROWS, 1) bool.
    """
    # The cache streams through: it should not drive the angles out of the second-level cache.
    if INTERLEAVED:
        # One dense load, taken apart in registers: every second element would load half a sector.
        dims = tl.arange(0, 2 * HALF_PAD)[None, :]
        inside = listed & (dims < 2 * HALF)
        both = tl.load(heads + dims, mask=inside, eviction_policy="evict_first")
        first, second = tl.split(tl.reshape(both, (ROWS, HALF_PAD, 2)))
    else:
        dims = tl.arange(0, HALF_PAD)[None, :]
        inside = listed & (dims < HALF)
        first = tl.load(heads + dims, mask=inside, eviction_policy="evict_first")
        second = tl.load(heads + HALF + dims, mask=inside, eviction_policy="evict_first")
    return first, second


@triton.jit
def _store_pairs(
    heads: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    listed: tl.tensor,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Store what `_load_pairs` returns, or its like in float32, rounded once."""
    dtype = heads.dtype.element_ty
    if INTERLEAVED:
        dims = tl.arange(0, 2 * HALF_PAD)[None, :]
        both = tl.reshape(tl.join(first.to(dtype), second.to(dtype)), (ROWS, 2 * HALF_PAD))
        tl.store(heads + dims, both, mask=listed & (dims < 2 * HALF))
    else:
        dims = tl.arange(0, HALF_PAD)[None, :]
        inside = listed & (dims < HALF)
        tl.store(heads + dims, first.to(dtype), mask=inside)
        tl.store(heads + HALF + dims, second.to(dtype), mask=inside)


@triton.jit
def _copy(
    source: tl.tensor,
    target: tl.tensor,
    listed: tl.tensor,
    START: tl.constexpr,
    END: tl.constexpr,
    PAD: tl.constexpr,
) -> None:
    """Copy dimensions START to END of every head."""
    dims = START + tl.arange(0, PAD)[None, :]
    inside = listed & (dims < END)
    tl.store(target + dims, tl.load(source + dims, mask=inside), mask=inside)


# The numbers of rows and slots change with every edit and document: a kernel compiled for one
# serves all. Alignment does not suffer, every offset is a multiple of HEAD_DIM.
@triton.jit(do_not_specialize=["num_rows", "num_slots", "num_heads", "turned_blocks"])
def rope_shift_kernel(
    unrotated: tl.tensor,
    rotated: tl.tensor,
    slots: tl.tensor,
    positions: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    num_rows: tl.tensor,
    num_slots: tl.tensor,
    num_heads: tl.tensor,
    turned_blocks: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    TAIL_PAD: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    """Turn ROWS slots of HEADS heads; the grid is row blocks times head blocks.

    `turned_blocks` row blocks go through all heads before the next ones do: so many that memory
    streams, so few that their angles stay in the second-level cache.
    """
    number = tl.program_id(0)
    num_head_blocks = tl.cdiv(num_heads, HEADS)
    of_group = number % (turned_blocks * num_head_blocks)
    first_block = number // (turned_blocks * num_head_blocks) * turned_blocks
    first_head = of_group // turned_blocks * HEADS
    rows = (first_block + of_group % turned_blocks) * ROWS + tl.arange(0, ROWS)
    is_listed = rows < num_rows
    slot = tl.load(slots + rows, mask=is_listed, other=0)
    position = tl.load(positions + rows, mask=is_listed, other=0)
    listed = is_listed[:, None]
    pairs = tl.arange(0, HALF_PAD)[None, :]
    at = position[:, None] * HALF + pairs
    inside = listed & (pairs < HALF)
    c = tl.load(cos + at, mask=inside, other=0.0, eviction_policy="evict_last")
    s = tl.load(sin + at, mask=inside, other=0.0, eviction_policy="evict_last")
    # int64 throughout: 32 layers of 32 heads pass 2^31 elements at 16,384 slots.
    in_head = (slot * HEAD_DIM)[:, None]
    stride = tl.cast(num_slots, tl.int64) * HEAD_DIM
    for offset in range(HEADS):
        head = first_head + offset
        if head < num_heads:
            source = unrotated + head * stride + in_head
            target = rotated + head * stride + in_head
            first, second = _load_pairs(source, listed, HALF, HALF_PAD, INTERLEAVED, ROWS)
            a, b = first.to(tl.float32), second.to(tl.float32)
            _store_pairs(
                target, a * c - b * s, b * c + a * s, listed, HALF, HALF_PAD, INTERLEAVED, ROWS
            )
            if TAIL_PAD > 0:
                _copy(source, target, listed, 2 * HALF, HEAD_DIM, TAIL_PAD)


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def write_rows_kernel(
    qkv: tl.tensor,
    queries: tl.tensor,
    unrotated: tl.tensor,
    rotated: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    num_rows: tl.tensor,
    num_slots: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    TAIL_PAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Rotate or copy one projected head of ROWS rows; the grid is (heads, row blocks)."""
    head = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_listed = rows < num_rows
    listed = is_listed[:, None]
    row = tl.cast(rows, tl.int64)
    source = qkv + ((row * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * HEAD_DIM)[:, None]
    slot = tl.load(slots + rows, mask=is_listed, other=0)
    kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
    in_cache = ((tl.cast(kv_head, tl.int64) * num_slots + slot) * HEAD_DIM)[:, None]
    if head < NUM_HEADS + NUM_KV_HEADS:
        pairs = tl.arange(0, HALF_PAD)[None, :]
        at = row[:, None] * HALF + pairs
        inside = listed & (pairs < HALF)
        c = tl.load(cos + at, mask=inside, other=0.0)
        s = tl.load(sin + at, mask=inside, other=0.0)
        first, second = _load_pairs(source, listed, HALF, HALF_PAD, INTERLEAVED, ROWS)
        a, b = first.to(tl.float32), second.to(tl.float32)
        if head < NUM_HEADS:
            target = queries + ((row * NUM_HEADS + head) * HEAD_DIM)[:, None]
        else:
            target = rotated + in_cache
            _store_pairs(
                unrotated + in_cache, first, second, listed, HALF, HALF_PAD, INTERLEAVED, ROWS
            )
            if TAIL_PAD > 0:
                _copy(source, unrotated + in_cache, listed, 2 * HALF, HEAD_DIM, TAIL_PAD)
        _store_pairs(
            target, a * c - b * s, b * c + a * s, listed, HALF, HALF_PAD, INTERLEAVED, ROWS
        )
        if TAIL_PAD > 0:
            _copy(source, target, listed, 2 * HALF, HEAD_DIM, TAIL_PAD)
    else:
        _copy(source, values + in_cache, listed, 0, HEAD_DIM, HEAD_PAD)
