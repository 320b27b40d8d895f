"""Device code of `dependency.py`: attention, mean over heads, and its largest entries."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

# Scores are in powers of two: `scale` has the factor log2(e) in it. Logarithms of sums are natural
# ones in memory, as fused attention returns them. Offsets inside a head, and of rows, are int32 to
# spare registers; the launcher checks that they fit.


@triton.jit
def _head_rows(
    queries: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    num_rows: tl.tensor,
    num_heads: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tl.tensor:
    """Load one head of some rows, (rows, HEAD_PAD)."""
    dims = tl.arange(0, HEAD_PAD)
    inside = (rows < num_rows)[:, None] & (dims < HEAD_DIM)[None, :]
    at = rows[:, None] * (num_heads * HEAD_DIM) + dims[None, :]
    loaded = tl.load(queries + head * HEAD_DIM + at, mask=inside, other=0.0)
    # The interpreter's dot would take bf16's bits for integers.
    return loaded.to(tl.float32) if WIDEN else loaded


@triton.jit
def _head_slots(
    keys: tl.tensor,
    slots: tl.tensor,
    kv_head: tl.tensor,
    num_slots: tl.tensor,
    head_slots: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tl.tensor:
    """Load some slots of one KV head, (slots, HEAD_PAD)."""
    dims = tl.arange(0, HEAD_PAD)
    inside = (slots < num_slots)[:, None] & (dims < HEAD_DIM)[None, :]
    of_head = keys + tl.cast(kv_head, tl.int64) * head_slots * HEAD_DIM
    at = slots[:, None] * HEAD_DIM + dims[None, :]
    loaded = tl.load(of_head + at, mask=inside, other=0.0)
    return loaded.to(tl.float32) if WIDEN else loaded


@triton.jit(do_not_specialize=["num_rows", "num_slots", "head_slots"])
def log_sums_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    row_positions: tl.tensor,
    slot_positions: tl.tensor,
    log_sums: tl.tensor,
    num_rows: tl.tensor,
    num_slots: tl.tensor,
    head_slots: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Write the log of the sum of exponentials of one head's rows; grid (row blocks, heads)."""
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < num_rows
    row_position = tl.load(row_positions + rows, mask=is_row, other=-1)
    query = _head_rows(queries, rows, head, num_rows, num_heads, HEAD_DIM, HEAD_PAD, WIDEN)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, num_slots, BLOCK_N, num_stages=STAGES):
        slots = first + tl.arange(0, BLOCK_N)
        is_slot = slots < num_slots
        key = _head_slots(
            keys, slots, head // GROUP, num_slots, head_slots, HEAD_DIM, HEAD_PAD, WIDEN
        )
        position = tl.load(slot_positions + slots, mask=is_slot, other=0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        visible = is_slot[None, :] & (position[None, :] <= row_position[:, None])
        score = tl.where(visible, score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        largest = new_largest
    LN2: tl.constexpr = 0.6931471805599453
    to = log_sums + tl.cast(head, tl.int64) * num_rows + rows
    total = tl.where(total > 0.0, total, 1.0)  # rows past the end
    tl.store(to, (largest + tl.log2(total)) * LN2, mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "num_slots", "head_slots", "row_stride", "num_heads"])
def mean_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    row_positions: tl.tensor,
    slot_positions: tl.tensor,
    log_sums: tl.tensor,
    mean: tl.tensor,
    num_rows: tl.tensor,
    num_slots: tl.tensor,
    head_slots: tl.tensor,
    row_stride: tl.tensor,
    num_heads: tl.tensor,
    scale: tl.tensor,
    factor: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Write a tile of `factor` times the sum of all heads' shares; grid (slot, row blocks)."""
    slots = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row, is_slot = rows < num_rows, slots < num_slots
    # Positions are below 2^31: what is not there is before, and after, all that is.
    row_position = tl.load(row_positions + rows, mask=is_row, other=-1)
    position = tl.load(slot_positions + slots, mask=is_slot, other=2147483647)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sees = tl.max(row_position, 0) >= tl.min(position, 0)
    if sees:  # above the diagonal there is nothing to compute
        for head in tl.range(0, num_heads, num_stages=STAGES):
            query = _head_rows(queries, rows, head, num_rows, num_heads, HEAD_DIM, HEAD_PAD, WIDEN)
            key = _head_slots(
                keys, slots, head // GROUP, num_slots, head_slots, HEAD_DIM, HEAD_PAD, WIDEN
            )
            of_head = log_sums + tl.cast(head, tl.int64) * num_rows + rows
            log_sum = tl.load(of_head, mask=is_row, other=0.0) * 1.4426950408889634
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            total += tl.exp2(score - log_sum[:, None])
        # Only here, which spares the loop a mask: what is not seen may have overflowed to infinity.
        total = tl.where(position[None, :] <= row_position[:, None], total * factor, 0.0)
    to = mean + tl.cast(rows, tl.int64)[:, None] * row_stride + slots[None, :]
    inside = is_row[:, None] & is_slot[None, :]
    if ADD:
        if sees:
            tl.store(to, total + tl.load(to, mask=inside, other=0.0), mask=inside)
    else:
        tl.store(to, total, mask=inside)


@triton.jit(do_not_specialize=["num_slots", "row_stride"])
def largest_kernel(
    weights: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    num_slots: tl.tensor,
    row_stride: tl.tensor,
    NUM_ENTRIES: tl.constexpr,
    ENTRIES_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    LOW_BIT: tl.constexpr,
) -> None:
    """Write one row's largest entries in order of slot; the grid is (rows,).

    The bits of floats from 0 on are in the order of their values: the smallest entry to keep is
    found bit by bit, from the highest down to LOW_BIT, by counting.
    """
    row = tl.cast(tl.program_id(0), tl.int64)
    slots = tl.arange(0, BLOCK)
    weight = tl.load(weights + row * row_stride + slots, mask=slots < num_slots, other=0.0)
    code = weight.to(tl.int32, bitcast=True)
    least = 0
    for step in range(31 - LOW_BIT):
        trial = least + (1 << (30 - step))
        count = tl.sum((code >= trial).to(tl.int32), 0)
        least = tl.where(count >= NUM_ENTRIES, trial, least)
    is_larger = code >= least + (1 << LOW_BIT)
    # Of those that share the least one's bits, the first fill up what is left.
    is_equal = (code >= least) & (code > 0) & (is_larger == 0)
    room = NUM_ENTRIES - tl.sum(is_larger.to(tl.int32), 0)
    is_kept = is_larger | (is_equal & (tl.cumsum(is_equal.to(tl.int32), 0) <= room))
    place = tl.cumsum(is_kept.to(tl.int32), 0) - 1
    to = row * NUM_ENTRIES + place
    tl.store(indices + to, slots, mask=is_kept)
    tl.store(values + to, weight.to(values.dtype.element_ty), mask=is_kept)
    entries = tl.arange(0, ENTRIES_PAD)
    is_empty = (entries >= tl.sum(is_kept.to(tl.int32), 0)) & (entries < NUM_ENTRIES)
    to_empty = row * NUM_ENTRIES + entries
    tl.store(indices + to_empty, tl.zeros([ENTRIES_PAD], tl.int32), mask=is_empty)
    zeros = tl.zeros([ENTRIES_PAD], tl.float32)
    tl.store(values + to_empty, zeros.to(values.dtype.element_ty), mask=is_empty)
