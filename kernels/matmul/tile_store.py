# ruff: noqa: ANN001, ANN201
"""What the matmul kernels share: storing a tile, after summing it in a fixed order."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_tile(
    acc,  # (BLOCK_N, BLOCK_M) float32, this program's part of the sum
    partials,  # (SPLIT, m, n) float32, unused if SPLIT is 1
    locks,  # one int32 per tile, zero before and after
    bias,
    out,  # (m, n)
    m,
    n,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Store a tile of the transposed product; of SPLIT programs the last to arrive sums all parts.

    It reads them in their order, its own too: the bits do not depend on who came last. A second
    launch for the sum would cost about as much as a small product takes.
    """
    tile = tl.program_id(0)
    at_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    at_m = tl.arange(0, BLOCK_M)[None, :]
    inside = (at_n < n) & (at_m < m)
    at = at_m * n + at_n
    if SPLIT > 1:
        tl.store(partials + tl.program_id(1) * m * n + at, acc, mask=inside)
        tl.debug_barrier()  # all threads' stores come before the one thread's release
        arrived = tl.atomic_add(locks + tile, 1, sem="acq_rel", scope="gpu")
        tl.debug_barrier()
        if arrived == SPLIT - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for part in tl.static_range(SPLIT):
                # .cg: past the first-level cache, which does not see other programs' stores.
                total += tl.load(
                    partials + part * m * n + at, mask=inside, other=0.0, cache_modifier=".cg"
                )
            if HAS_BIAS:
                total += tl.load(bias + at_n, mask=at_n < n, other=0.0).to(tl.float32)
            tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
            tl.store(locks + tile, 0)
    else:
        if HAS_BIAS:
            acc += tl.load(bias + at_n, mask=at_n < n, other=0.0).to(tl.float32)
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)
