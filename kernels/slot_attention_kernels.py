"""Device code of `slot_attention.py`: attention split over slots, its parts combined, weights."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from .early_launch import wait_for_inputs

# Scores are in powers of two throughout: `scale` has the factor log2(e) in it. Offsets inside a
# head and among all scores are int32, to spare registers; a head's own is int64. `head_slots` times
# HEAD_DIM is the distance of two heads, so that the compiler sees how it is aligned.


@triton.jit
def _num_used(num_used: tl.tensor, num_slots: tl.tensor, ON_DEVICE: tl.constexpr) -> tl.tensor:
    """Return the slots in use: read on the device, where a captured graph must see it change."""
    if ON_DEVICE:
        return tl.load(num_used).to(tl.int32)
    else:
        return num_slots


@triton.jit
def _share(used: tl.tensor, num_splits: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the slots of one split, whole blocks; the last splits may have none."""
    return tl.cdiv(tl.cdiv(used, BLOCK), num_splits) * BLOCK


@triton.jit
def _finite(largest: tl.tensor) -> tl.tensor:
    """Return what to take from scores: nothing where no slot was visible, for inf - inf is NaN."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit(do_not_specialize=["num_slots", "head_slots", "num_splits", "max_slots"])
def vector_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    row_positions: tl.tensor,
    slot_positions: tl.tensor,
    num_used: tl.tensor,
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    scores: tl.tensor,
    num_slots: tl.tensor,
    head_slots: tl.tensor,
    num_splits: tl.tensor,
    max_slots: tl.tensor,
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    BY_POSITION: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    KEEP_SCORES: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Attend from one row, one query head per KV head; the grid is (splits, heads).

    Every lane of a block keeps a softmax of its own over each BLOCKth slot: the loop exchanges
    nothing between warps.
    """
    wait_for_inputs(EARLY)
    split, head = tl.program_id(0), tl.program_id(1)
    used = _num_used(num_used, num_slots, ON_DEVICE)
    share = _share(used, num_splits, BLOCK)
    first = split * share
    if first < used:
        dims = tl.arange(0, HEAD_PAD)
        is_dim = dims < HEAD_DIM
        query = tl.load(queries + head * HEAD_DIM + dims, mask=is_dim, other=0.0)
        query = query.to(tl.float32) * scale
        in_cache = tl.cast(head, tl.int64) * head_slots * HEAD_DIM
        keys += in_cache
        values += in_cache
        lane_largest = tl.full([BLOCK], float("-inf"), tl.float32)
        lane_total = tl.zeros([BLOCK], tl.float32)
        lane_sum = tl.zeros([BLOCK, HEAD_PAD], tl.float32)
        if BY_POSITION:
            row_position = tl.load(row_positions)
        for start in tl.range(first, tl.minimum(first + share, used), BLOCK, num_stages=STAGES):
            slots = start + tl.arange(0, BLOCK)
            is_slot = slots < used
            at = slots[:, None] * HEAD_DIM + dims[None, :]
            inside = is_slot[:, None] & is_dim[None, :]
            key = tl.load(keys + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
            score = tl.sum(key * query[None, :], 1)
            visible = is_slot
            if BY_POSITION:
                position = tl.load(slot_positions + slots, mask=is_slot, other=0)
                visible = visible & (position <= row_position)
            score = tl.where(visible, score, float("-inf"))
            if KEEP_SCORES:
                tl.store(scores + head * max_slots + slots, score, mask=is_slot)
            new_largest = tl.maximum(lane_largest, score)
            base = _finite(new_largest)
            shrink = tl.exp2(lane_largest - base)
            part = tl.exp2(score - base)
            lane_total = lane_total * shrink + part
            lane_sum = lane_sum * shrink[:, None] + part[:, None] * value
            lane_largest = new_largest
        of_all = tl.max(lane_largest, 0)
        shrink = tl.exp2(lane_largest - _finite(of_all))
        to = split * tl.num_programs(1) + head
        tl.store(largest + to, of_all)
        tl.store(totals + to, tl.sum(lane_total * shrink, 0))
        mixed = tl.sum(lane_sum * shrink[:, None], 0)
        tl.store(sums + to * HEAD_DIM + dims, mixed, mask=is_dim)


@triton.jit(do_not_specialize=["num_slots", "head_slots", "num_splits", "max_slots", "num_rows"])
def dot_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    row_positions: tl.tensor,
    slot_positions: tl.tensor,
    num_used: tl.tensor,
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    scores: tl.tensor,
    num_slots: tl.tensor,
    head_slots: tl.tensor,
    num_splits: tl.tensor,
    max_slots: tl.tensor,
    num_rows: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    BY_POSITION: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    KEEP_SCORES: tl.constexpr,
    WIDEN: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Attend from BLOCK_M query heads of one KV head; the grid is (blocks, splits, KV heads).

    Blocks of the same slots follow each other: keys come from memory once and then from the
    second-level cache.
    """
    wait_for_inputs(EARLY)
    split, kv_head = tl.program_id(1), tl.program_id(2)
    used = _num_used(num_used, num_slots, ON_DEVICE)
    share = _share(used, num_splits, BLOCK)
    first = split * share
    if first < used:
        folded = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        row = folded // GROUP
        is_row = row < num_rows
        num_heads = tl.num_programs(2) * GROUP
        head = row * num_heads + kv_head * GROUP + folded % GROUP
        dims = tl.arange(0, HEAD_PAD)
        is_dim = dims < HEAD_DIM
        of_rows = is_row[:, None] & is_dim[None, :]
        of_queries = tl.cast(head, tl.int64)[:, None] * HEAD_DIM + dims[None, :]
        query = tl.load(queries + of_queries, mask=of_rows, other=0.0)
        if WIDEN:  # the interpreter's dot would take bf16's bits for integers
            query = query.to(tl.float32)
        in_cache = tl.cast(kv_head, tl.int64) * head_slots * HEAD_DIM
        keys += in_cache
        values += in_cache
        row_largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_total = tl.zeros([BLOCK_M], tl.float32)
        row_sum = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
        if BY_POSITION:
            row_position = tl.load(row_positions + row, mask=is_row, other=0)
        for start in tl.range(first, tl.minimum(first + share, used), BLOCK, num_stages=STAGES):
            slots = start + tl.arange(0, BLOCK)
            is_slot = slots < used
            at = slots[:, None] * HEAD_DIM + dims[None, :]
            inside = is_slot[:, None] & is_dim[None, :]
            key = tl.load(keys + at, mask=inside, other=0.0)
            value = tl.load(values + at, mask=inside, other=0.0)
            if WIDEN:
                key = key.to(tl.float32)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            visible = is_slot[None, :]
            if BY_POSITION:
                position = tl.load(slot_positions + slots, mask=is_slot, other=0)
                visible = visible & (position[None, :] <= row_position[:, None])
            score = tl.where(visible, score, float("-inf"))
            if KEEP_SCORES:
                kept = (head * max_slots)[:, None] + slots[None, :]
                tl.store(scores + kept, score, mask=is_row[:, None] & is_slot[None, :])
            new_largest = tl.maximum(row_largest, tl.max(score, 1))
            base = _finite(new_largest)
            shrink = tl.exp2(row_largest - base)
            part = tl.exp2(score - base[:, None])
            row_total = row_total * shrink + tl.sum(part, 1)
            part = part.to(value.dtype)
            if WIDEN:
                part, value = part.to(tl.float32), value.to(tl.float32)
            row_sum = tl.dot(part, value, row_sum * shrink[:, None], input_precision="ieee")
            row_largest = new_largest
        to = tl.cast(split * num_rows * num_heads + head, tl.int64)
        tl.store(largest + to, row_largest, mask=is_row)
        tl.store(totals + to, row_total, mask=is_row)
        tl.store(sums + to[:, None] * HEAD_DIM + dims[None, :], row_sum, mask=of_rows)


@triton.jit(do_not_specialize=["num_slots", "num_splits"])
def combine_kernel(
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    num_used: tl.tensor,
    log_sums: tl.tensor,
    out: tl.tensor,
    num_slots: tl.tensor,
    num_splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Add up the splits of one head of one row, always in the same order; zeros if it saw none."""
    wait_for_inputs(EARLY)
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    used = _num_used(num_used, num_slots, ON_DEVICE)
    share = _share(used, num_splits, BLOCK)
    splits = tl.arange(0, SPLITS_PAD)
    # Splits without slots have written nothing.
    written = (splits < num_splits) & (splits * share < used)
    parts = splits * num_heads + head
    each = tl.load(largest + parts, mask=written, other=float("-inf"))
    base = _finite(tl.max(each, 0))
    total = tl.sum(tl.load(totals + parts, mask=written, other=0.0) * tl.exp2(each - base), 0)
    dims = tl.arange(0, HEAD_PAD)
    is_dim = dims < HEAD_DIM
    mixed = tl.zeros([HEAD_PAD], tl.float32)
    for first in range(0, SPLITS_PAD, CHUNK):
        chunk = first + tl.arange(0, CHUNK)
        is_part = (chunk < num_splits) & (chunk * share < used)
        of_part = chunk * num_heads + head
        factor = tl.exp2(tl.load(largest + of_part, mask=is_part, other=float("-inf")) - base)
        at = tl.cast(of_part, tl.int64)[:, None] * HEAD_DIM + dims[None, :]
        part = tl.load(sums + at, mask=is_part[:, None] & is_dim[None, :], other=0.0)
        mixed += tl.sum(part * factor[:, None], 0)
    sees = total > 0.0
    mixed = tl.where(sees, mixed / tl.where(sees, total, 1.0), 0.0)
    to = tl.cast(head, tl.int64) * HEAD_DIM + dims
    tl.store(out + to, mixed.to(out.dtype.element_ty), mask=is_dim)
    # What no slot may weigh anything against.
    log_sum = tl.where(sees, base + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(log_sums + head, log_sum)


@triton.jit(do_not_specialize=["num_slots", "num_heads", "max_slots", "row_stride"])
def weights_kernel(
    scores: tl.tensor,
    log_sums: tl.tensor,
    num_used: tl.tensor,
    weights: tl.tensor,
    num_slots: tl.tensor,
    num_heads: tl.tensor,
    max_slots: tl.tensor,
    row_stride: tl.tensor,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Turn one row's scores into weights, mean over heads; the grid is (slot blocks, rows)."""
    wait_for_inputs(EARLY)
    row = tl.cast(tl.program_id(1), tl.int64)
    used = _num_used(num_used, num_slots, ON_DEVICE)
    first = tl.program_id(0) * BLOCK
    if first < used:
        slots = first + tl.arange(0, BLOCK)
        is_slot = slots < used
        mean = tl.zeros([BLOCK], tl.float32)
        for first_head in range(0, num_heads, HEADS):
            number = first_head + tl.arange(0, HEADS)
            is_head = number < num_heads
            heads = row * num_heads + number
            log_sum = tl.load(log_sums + heads, mask=is_head, other=float("inf"))
            inside = is_head[:, None] & is_slot[None, :]
            at = heads[:, None] * max_slots + slots[None, :]
            score = tl.load(scores + at, mask=inside, other=float("-inf"))
            mean += tl.sum(tl.exp2(score - log_sum[:, None]), 0)
        mean /= num_heads
        to = weights + row * row_stride + slots
        if ADD:
            mean += tl.load(to, mask=is_slot)
        tl.store(to, mean, mask=is_slot)
