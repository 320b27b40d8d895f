"""Device code of `slots.py`: which slots a split has, the sum of its parts, weights.

Where few parts are to be read, the program that comes last reads them itself: a launch costs about
two microseconds. Otherwise a second launch has many programs read them.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def slots_used(num_used: tl.tensor, num_slots: tl.tensor, ON_DEVICE: tl.constexpr) -> tl.tensor:
    """Return the slots in use: read on the device, where a captured graph must see it change."""
    if ON_DEVICE:
        return tl.load(num_used).to(tl.int32)
    else:
        return num_slots


@triton.jit
def slots_of_split(used: tl.tensor, num_splits: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the slots of one split, a block at least; the last splits may have none."""
    return tl.maximum(tl.cdiv(tl.cdiv(used, BLOCK), num_splits), 1) * BLOCK


@triton.jit
def finite(largest: tl.tensor) -> tl.tensor:
    """Return what to take from scores: nothing where no slot was visible, for inf - inf is NaN."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def is_last(lock: tl.tensor, num_parts: tl.tensor) -> tl.tensor:
    """Return whether all other programs have stored their parts; then the lock is zero again."""
    tl.debug_barrier()  # all threads' stores come before the one thread's release
    arrived = tl.atomic_add(lock, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    is_all = arrived == num_parts - 1
    if is_all:
        tl.store(lock, 0)
    return is_all


@triton.jit
def _parts(
    sums: tl.tensor,
    largest: tl.tensor,
    splits: tl.tensor,
    head: tl.tensor,
    is_head: tl.tensor,
    num_parts: tl.tensor,
    num_heads: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest scores of some splits, (heads, splits), and their sums, one axis more.

    In this order of axes a warp has all parts of a head, and adds them up on its own.
    """
    dims = tl.arange(0, HEAD_PAD)
    at = head[:, None] + splits[None, :] * num_heads
    is_part = is_head[:, None] & (splits < num_parts)[None, :]
    peaks = tl.load(largest + at, mask=is_part, other=float("-inf"), cache_modifier=".cg")
    inside = is_part[:, :, None] & (dims < HEAD_DIM)[None, None, :]
    to = tl.cast(at, tl.int64)[:, :, None] * HEAD_DIM + dims[None, None, :]
    return peaks, tl.load(sums + to, mask=inside, other=0.0, cache_modifier=".cg")


@triton.jit
def combine(
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    log_sums: tl.tensor,
    out: tl.tensor,
    head: tl.tensor,
    is_head: tl.tensor,
    num_parts: tl.tensor,
    num_heads: tl.tensor,
    HEADS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
) -> None:
    """Add up the parts of HEADS heads, of any rows, in the order of the splits; zeros if none.

    The bits do not depend on which program does it. Everything is loaded past the first-level cache
    (.cg), which does not see other programs' stores, and CHUNK parts before they are needed: the
    one program that reads waits for the second-level cache as seldom as it can.
    """
    chunk = tl.arange(0, CHUNK)
    peaks, parts = _parts(
        sums, largest, chunk, head, is_head, num_parts, num_heads, HEAD_DIM, HEAD_PAD
    )
    splits = tl.arange(0, SPLITS_PAD)
    at = head[:, None] + splits[None, :] * num_heads
    is_part = is_head[:, None] & (splits < num_parts)[None, :]
    each = tl.load(largest + at, mask=is_part, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(totals + at, mask=is_part, other=0.0, cache_modifier=".cg")
    base = finite(tl.max(each, 1))
    total = tl.sum(total * tl.exp2(each - base[:, None]), 1)
    mixed = tl.zeros([HEADS, HEAD_PAD], tl.float32)
    for first in range(0, num_parts, CHUNK):
        following = first + CHUNK + chunk
        next_peaks, next_parts = _parts(
            sums, largest, following, head, is_head, num_parts, num_heads, HEAD_DIM, HEAD_PAD
        )
        factor = tl.exp2(peaks - base[:, None])
        mixed += tl.sum(parts * factor[:, :, None], 1)
        peaks, parts = next_peaks, next_parts
    dims = tl.arange(0, HEAD_PAD)
    sees = total > 0.0
    divisor = tl.where(sees, total, 1.0)
    mixed = tl.where(sees[:, None], mixed / divisor[:, None], 0.0)
    to = tl.cast(head, tl.int64)[:, None] * HEAD_DIM + dims[None, :]
    is_dim = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(out + to, mixed.to(out.dtype.element_ty), mask=is_dim)
    # What no slot may weigh anything against.
    log_sum = tl.where(sees, base + tl.log2(divisor), float("inf"))
    tl.store(log_sums + head, log_sum, mask=is_head)


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
) -> None:
    """Add up the splits of one head of one row, always in the same order; zeros if it saw none."""
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    used = slots_used(num_used, num_slots, ON_DEVICE)
    share = slots_of_split(used, num_splits, BLOCK)
    splits = tl.arange(0, SPLITS_PAD)
    # Splits without slots have written nothing.
    written = (splits < num_splits) & (splits * share < used)
    parts = splits * num_heads + head
    each = tl.load(largest + parts, mask=written, other=float("-inf"))
    base = finite(tl.max(each, 0))
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
) -> None:
    """Turn one row's scores into weights, mean over heads; the grid is (slot blocks, rows)."""
    row = tl.cast(tl.program_id(1), tl.int64)
    used = slots_used(num_used, num_slots, ON_DEVICE)
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
