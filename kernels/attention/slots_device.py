"""Device code of `slots.py`: attention, split over slots."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from .slots_combine import combine, finite, is_last, slots_of_split, slots_used

# Scores are in powers of two throughout: `scale` has the factor log2(e) in it. Offsets inside a
# head and among all scores are int32, to spare registers; a head's own is int64. `head_slots` times
# HEAD_DIM is the distance of two heads, so that the compiler sees how it is aligned.


@triton.jit
def _row_and_head(
    num_heads: tl.tensor,
    kv_head: tl.tensor,
    BLOCK_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the rows of a block's first HEADS query heads, and their numbers among all rows'."""
    folded = tl.program_id(0) * BLOCK_HEADS + tl.arange(0, HEADS)
    row = folded // GROUP
    return row, row * num_heads + kv_head * GROUP + folded % GROUP


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
    locks: tl.tensor,
    log_sums: tl.tensor,
    out: tl.tensor,
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
    COMBINED: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Attend from one row, one query head per KV head; the grid is (splits, heads).

    Every lane of a block keeps a softmax of its own over each BLOCKth slot: the loop exchanges
    nothing between warps. If COMBINED is 1, a head's last program combines its parts; if it is 0, a
    second launch does.
    """
    split, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, HEAD_PAD)
    is_dim = dims < HEAD_DIM
    # On its way while the program waits for the number of slots.
    query = tl.load(queries + head * HEAD_DIM + dims, mask=is_dim, other=0.0)
    used = slots_used(num_used, num_slots, ON_DEVICE)
    share = slots_of_split(used, num_splits, BLOCK)
    first = split * share
    if first < tl.maximum(used, 1):  # of an empty cache the first split writes that it saw nothing
        scaled = query.to(tl.float32) * scale
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
            score = tl.sum(key * scaled[None, :], 1)
            visible = is_slot
            if BY_POSITION:
                position = tl.load(slot_positions + slots, mask=is_slot, other=0)
                visible = visible & (position <= row_position)
            score = tl.where(visible, score, float("-inf"))
            if KEEP_SCORES:
                tl.store(scores + head * max_slots + slots, score, mask=is_slot)
            new_largest = tl.maximum(lane_largest, score)
            base = finite(new_largest)
            shrink = tl.exp2(lane_largest - base)
            part = tl.exp2(score - base)
            lane_total = lane_total * shrink + part
            lane_sum = lane_sum * shrink[:, None] + part[:, None] * value
            lane_largest = new_largest
        of_all = tl.max(lane_largest, 0)
        shrink = tl.exp2(lane_largest - finite(of_all))
        to = split * tl.num_programs(1) + head
        tl.store(largest + to, of_all)
        tl.store(totals + to, tl.sum(lane_total * shrink, 0))
        mixed = tl.sum(lane_sum * shrink[:, None], 0)
        tl.store(sums + to * HEAD_DIM + dims, mixed, mask=is_dim)
        if COMBINED > 0:
            num_parts = tl.maximum(tl.cdiv(used, share), 1)
            if is_last(locks + head, num_parts):
                combine(
                    sums,
                    largest,
                    totals,
                    log_sums,
                    out,
                    head + tl.arange(0, COMBINED),
                    tl.arange(0, COMBINED) < 1,
                    num_parts,
                    tl.num_programs(1),
                    COMBINED,
                    SPLITS_PAD,
                    CHUNK,
                    HEAD_DIM,
                    HEAD_PAD,
                )


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
    locks: tl.tensor,
    log_sums: tl.tensor,
    out: tl.tensor,
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
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    BY_POSITION: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    KEEP_SCORES: tl.constexpr,
    COMBINED: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Attend from query heads of one KV head; the grid is (blocks, splits, KV heads).

    A block is `BLOCK_HEADS` of at most BLOCK_M query heads, of any rows. Blocks of the same slots
    follow each other: keys come from memory once and then from the second-level cache. If COMBINED
    is not 0, the last program of a block combines its parts, of COMBINED heads at most.
    """
    split, kv_head = tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(2) * GROUP
    row, head = _row_and_head(num_heads, kv_head, BLOCK_HEADS, GROUP, BLOCK_M)
    is_row = (tl.arange(0, BLOCK_M) < BLOCK_HEADS) & (row < num_rows)
    dims = tl.arange(0, HEAD_PAD)
    is_dim = dims < HEAD_DIM
    of_rows = is_row[:, None] & is_dim[None, :]
    of_queries = tl.cast(head, tl.int64)[:, None] * HEAD_DIM + dims[None, :]
    # On its way while the program waits for the number of slots.
    query = tl.load(queries + of_queries, mask=of_rows, other=0.0)
    if WIDEN:  # the interpreter's dot would take bf16's bits for integers
        query = query.to(tl.float32)
    used = slots_used(num_used, num_slots, ON_DEVICE)
    share = slots_of_split(used, num_splits, BLOCK)
    first = split * share
    if first < tl.maximum(used, 1):  # of an empty cache the first split writes that it saw nothing
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
            base = finite(new_largest)
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
        if COMBINED > 0:
            num_parts = tl.maximum(tl.cdiv(used, share), 1)
            if is_last(locks + kv_head * tl.num_programs(0) + tl.program_id(0), num_parts):
                of_row, of_head = _row_and_head(num_heads, kv_head, BLOCK_HEADS, GROUP, COMBINED)
                combine(
                    sums,
                    largest,
                    totals,
                    log_sums,
                    out,
                    of_head,
                    (tl.arange(0, COMBINED) < BLOCK_HEADS) & (of_row < num_rows),
                    num_parts,
                    num_rows * num_heads,
                    COMBINED,
                    SPLITS_PAD,
                    CHUNK,
                    HEAD_DIM,
                    HEAD_PAD,
                )
