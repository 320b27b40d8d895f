"""The dependency record of a pass over many rows, on a GPU.

Each row's attention to every earlier row, mean over heads of a few layers, of which the largest
entries are kept. The device code is in `dependency_device.py`; `reference.py` has the
same signatures in plain torch.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .dependency_device import largest_kernel, log_sums_kernel, mean_kernel
from .reference import NUM_ENTRIES

# Entries are kept in float16: bits of float32 below its last one decide nothing.
_LOW_BIT = 23 - 10


class Tile(NamedTuple):
    """How the work of one launch is cut.

    Attributes:
        block_m: rows of a program.
        block_n: slots of a step.
        num_warps: of one program.
        num_stages: of the loop over heads or slots.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# `benchmarks/bench_kernels.py --only dependency_record --sweep` tries others.
MEAN_TILE = Tile(block_m=64, block_n=64, num_warps=4, num_stages=3)
# Without tensor cores, and for large heads: less in registers and in shared memory.
_SMALL_TILE = Tile(block_m=32, block_n=64, num_warps=8, num_stages=2)


def default_tile(head_dim: int, itemsize: int) -> Tile:
    """Return the tile for heads of that size."""
    return _SMALL_TILE if itemsize == 4 or head_dim > 128 else MEAN_TILE


def log_sums(
    queries: Tensor,
    keys: Tensor,
    row_positions: Tensor,
    slot_positions: Tensor,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Return the logarithm of each head's sum; see `reference.log_sums`.

    Raises:
        ValueError: as `record_dependencies`.
    """
    num_rows, num_heads, head_dim = queries.shape
    _check(queries, keys, row_positions, slot_positions)
    sums = torch.empty(num_heads, num_rows, dtype=torch.float32, device=queries.device)
    if not sums.numel():
        return sums
    tile = tile or default_tile(head_dim, keys.itemsize)
    with torch.cuda.device_of(queries):
        log_sums_kernel[(triton.cdiv(num_rows, tile.block_m), num_heads)](
            queries,
            keys,
            row_positions,
            slot_positions,
            sums,
            num_rows,
            keys.shape[1],
            keys.stride(0) // head_dim,
            math.log2(math.e) * head_dim**-0.5,
            **_constants(queries, keys, tile),
        )
    return sums


def record_dependencies(
    queries: Tensor,
    keys: Tensor,
    row_positions: Tensor,
    slot_positions: Tensor,
    mean: Tensor,
    *,
    sums: Tensor | None = None,
    share: float = 1.0,
    add: bool = False,
    tile: Tile | None = None,
) -> None:
    """Write every row's attention to `mean`; see `reference.record_dependencies`.

    Deterministic; a row's result does not depend on the others.

    Args:
        queries: as in the reference; contiguous.
        keys: as in the reference; each head contiguous, a view of a larger cache for instance.
        row_positions: as in the reference, from 0 to 2^31 - 2.
        slot_positions: as in the reference.
        mean: as in the reference; contiguous rows.
        sums: as in the reference; contiguous. Without it `log_sums` computes it first, which
            doubles the cost.
        share: as in the reference.
        add: as in the reference.
        tile: by default chosen by the head.

    Raises:
        ValueError: shapes, dtypes or memory layout are not as described.
    """
    num_rows, num_heads, head_dim = queries.shape
    num_slots = keys.shape[1]
    _check(queries, keys, row_positions, slot_positions)
    if mean.dtype != torch.float32 or mean.shape != (num_rows, num_slots) or mean.stride(1) != 1:
        raise ValueError(
            f"mean {tuple(mean.shape)} {mean.dtype} must be ({num_rows}, {num_slots}) float32, "
            "rows contiguous"
        )
    if sums is None:
        sums = log_sums(queries, keys, row_positions, slot_positions, tile=tile)
    if sums.shape != (num_heads, num_rows) or sums.dtype != torch.float32:
        raise ValueError(f"sums {tuple(sums.shape)} {sums.dtype}, not ({num_heads}, {num_rows})")
    if not sums.is_contiguous():
        raise ValueError("sums must be contiguous")
    if not mean.numel():
        return
    tile = tile or default_tile(head_dim, keys.itemsize)
    grid = (triton.cdiv(num_slots, tile.block_n), triton.cdiv(num_rows, tile.block_m))
    with torch.cuda.device_of(queries):
        mean_kernel[grid](
            queries,
            keys,
            row_positions,
            slot_positions,
            sums,
            mean,
            num_rows,
            num_slots,
            keys.stride(0) // head_dim,
            mean.stride(0),
            num_heads,
            math.log2(math.e) * head_dim**-0.5,
            share / num_heads,
            ADD=add,
            **_constants(queries, keys, tile),
        )


def largest_entries(mean: Tensor, num_entries: int = NUM_ENTRIES) -> tuple[Tensor, Tensor]:
    """Return each row's largest entries; see `reference.largest_entries`.

    Entries are in order of slot. Those that differ by less than a step of float16 count as equal,
    and of equal ones the first are kept.

    Raises:
        ValueError: `mean` is not float32 with contiguous rows.
    """
    if mean.dtype != torch.float32 or mean.ndim != 2 or (mean.numel() and mean.stride(1) != 1):
        raise ValueError(f"mean {tuple(mean.shape)} {mean.dtype}, not (rows, slots) float32")
    num_rows, num_slots = mean.shape
    indices = torch.empty(num_rows, num_entries, dtype=torch.int32, device=mean.device)
    values = torch.empty(num_rows, num_entries, dtype=torch.float16, device=mean.device)
    if not indices.numel():
        return indices, values
    block = max(128, triton.next_power_of_2(num_slots))
    with torch.cuda.device_of(mean):
        largest_kernel[(num_rows,)](
            mean,
            indices,
            values,
            num_slots,
            mean.stride(0),
            NUM_ENTRIES=num_entries,
            ENTRIES_PAD=triton.next_power_of_2(num_entries),
            BLOCK=block,
            LOW_BIT=_LOW_BIT,
            num_warps=select_warps(block),
        )
    return indices, values


def select_warps(block: int) -> int:
    """Return the warps that hold a row of that many entries, 16 a thread.

    Above 8,192 slots some of them spill to local memory.
    """
    return min(32, max(1, block // 512))


def _constants(queries: Tensor, keys: Tensor, tile: Tile) -> dict[str, int]:
    head_dim = keys.shape[2]
    return {
        "GROUP": queries.shape[1] // keys.shape[0],
        "HEAD_DIM": head_dim,
        "HEAD_PAD": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "STAGES": tile.num_stages,
        "WIDEN": not queries.is_cuda,
        "num_warps": tile.num_warps,
    }


def _check(queries: Tensor, keys: Tensor, row_positions: Tensor, slot_positions: Tensor) -> None:
    """Raise ValueError unless the tensors fit: a wrong shape would read past the end."""
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads, num_slots, _ = keys.shape
    if keys.shape[2] != head_dim or num_heads % num_kv_heads or queries.dtype != keys.dtype:
        raise ValueError(
            f"queries {tuple(queries.shape)} {queries.dtype} do not fit keys {tuple(keys.shape)} "
            f"{keys.dtype}"
        )
    if not queries.is_contiguous() or keys.stride(2) != 1 or keys.stride(1) != head_dim:
        raise ValueError("queries and every head of the keys must be contiguous")
    if keys.stride(0) % head_dim or max(queries.numel(), num_slots * head_dim) >= 2**31:
        raise ValueError(
            f"heads of {num_slots} slots are {keys.stride(0)} elements apart, or 2^31 elements "
            "are passed"
        )
    for positions, count in ((row_positions, num_rows), (slot_positions, num_slots)):
        if positions.dtype not in (torch.int32, torch.int64) or not positions.is_contiguous():
            raise ValueError(f"positions {positions.dtype} must be int32 or int64, contiguous")
        if positions.shape != (count,):
            raise ValueError(f"{tuple(positions.shape)} positions for {count}")
