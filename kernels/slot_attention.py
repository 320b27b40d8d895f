"""Attention of a few rows over the slots of a cache, in arbitrary order, on a GPU.

The device code is in `slot_attention_kernels.py`; `reference_attention.py` has the same signature
in plain torch and says what is promised. The slots are split between programs, whose parts a second
kernel adds up in a fixed order. Grid and number of splits follow from the cache's capacity alone,
so a captured graph survives a cache whose length changes, and neither the number of rows nor the
other rows change a row's bits.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .early_launch import early
from .slot_attention_checks import check_slots
from .slot_attention_kernels import combine_kernel, dot_kernel, vector_kernel, weights_kernel

PATHS = ("vector", "dot", "wide")
# Folded rows, query heads of one KV head, up to which they fit one tile of "dot".
_NARROW = 16
# More slots in one step would need more registers than there are to keep their scores.
_MAX_BLOCK = 64
# Splits that a warp of the second kernel adds up at a time, and its warps at most.
_WARP_SPLITS, _MAX_WARPS = 16, 4
# Heads and slots of a program of the third kernel.
_WEIGHT_HEADS, _WEIGHT_SLOTS = 32, 128
# What the interpreter has instead of multiprocessors: a few splits, so that there are some.
_NO_PROCESSORS = 4


class Tile(NamedTuple):
    """How the work of one launch is cut.

    Attributes:
        num_bytes: of a head's keys that a program reads at a time; a power of two.
        num_warps: of one program.
        num_stages: of the loop over slots; loads of so many steps are under way.
        programs: for each multiprocessor, for as many splits as the capacity has blocks.
        num_rows: query heads of one KV head that share one reading of its keys; a power of two.
    """

    num_bytes: int
    num_warps: int
    num_stages: int
    programs: int
    num_rows: int = _NARROW

    def block(self, head_dim: int, itemsize: int) -> int:
        """Return the slots of one step; 16 at least, the least that tensor cores take."""
        wanted = self.num_bytes // (triton.next_power_of_2(head_dim) * itemsize)
        return max(16, min(_MAX_BLOCK, wanted))

    def num_splits(self, keys: Tensor, num_heads: int) -> int:
        """Return how many programs share the slots of one KV head: one wave of them at most.

        Args:
            keys: a cache layer.
            num_heads: KV heads where one tile takes all rows; query heads on the path "wide", where
                each KV head has about as many tiles as query heads, and many rows make parts large.
        """
        _, capacity, head_dim = keys.shape
        wanted = self.programs * _num_processors(keys.device) // num_heads
        return max(1, min(wanted, triton.cdiv(capacity, self.block(head_dim, keys.itemsize))))


# One query head per KV head is bound by memory, several still are, on tensor cores.
# `benchmarks/bench_kernels.py --only slot_attention --sweep` tries others.
VECTOR_TILE = Tile(num_bytes=8192, num_warps=4, num_stages=3, programs=4)
DOT_TILE = Tile(num_bytes=16_384, num_warps=4, num_stages=3, programs=2)
# Without tensor cores the sums of float32 need more registers.
_FLOAT_TILE = Tile(num_bytes=8192, num_warps=4, num_stages=3, programs=2)
# 64 rows are what a warp group's instruction of Hopper takes. Elsewhere sums of 64 rows do not fit
# the registers, and half of them fill the shared memory of two programs.
WIDE_TILE = Tile(num_bytes=16_384, num_warps=4, num_stages=3, programs=2, num_rows=64)
WIDE_TILE_BEFORE_HOPPER = WIDE_TILE._replace(num_rows=32)


def default_path(num_rows: int, group: int, itemsize: int) -> str:
    """Return the path for that many rows, query heads per KV head, and bytes per element."""
    if num_rows * group == 1:
        return "vector"
    return "dot" if num_rows * group <= _NARROW or itemsize == 4 else "wide"


def default_tile(path: str, keys: Tensor) -> Tile:
    """Return the tile of a path for a cache of that dtype on that device."""
    if path == "vector":
        return VECTOR_TILE
    if path == "wide":
        return WIDE_TILE if _is_hopper(keys.device) else WIDE_TILE_BEFORE_HOPPER
    return _FLOAT_TILE if keys.itemsize == 4 else DOT_TILE


@dataclass(frozen=True, slots=True)
class Workspace:
    """Memory for the parts of up to `num_rows` rows, for caches of one shape; see `workspace_for`.

    Attributes:
        sums: float32, the parts' weighted values.
        largest: float32, the parts' largest scores.
        totals: float32, the parts' sums of exponentials.
        log_sums: float32, per row and head.
        scores: float32, per row, head and slot; empty where no weights are wanted.
    """

    sums: Tensor
    largest: Tensor
    totals: Tensor
    log_sums: Tensor
    scores: Tensor


def workspace_for(
    keys: Tensor,
    num_rows: int,
    num_heads: int,
    *,
    with_weights: bool = False,
    path: str | None = None,
    tile: Tile | None = None,
) -> Workspace:
    """Reserve what `attend_slots` needs for any number of rows up to `num_rows`.

    Args:
        keys: a cache layer of the shape that will be used.
        num_rows: at most.
        num_heads: query heads.
        with_weights: whether attention weights will be asked for; they need
            4 * num_rows * num_heads * capacity bytes.
        path: that will be used; the default is any.
        tile: that will be used; the default is each path's own.
    """
    heads = num_rows * num_heads
    parts = heads * max(
        _num_splits(each, tile or default_tile(each, keys), keys, num_heads)
        for each in ((path,) if path else PATHS)
    )

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=keys.device)

    return Workspace(
        sums=room(parts, keys.shape[-1]),
        largest=room(parts),
        totals=room(parts),
        log_sums=room(heads),
        scores=room(heads, keys.shape[1] if with_weights else 0),
    )


def attend_slots(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_slots: int | Tensor,
    row_positions: Tensor | None = None,
    slot_positions: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    add: bool = False,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
    path: str | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Attend from every row to the slots it may see; see `reference_attention.attend_slots`.

    Deterministic. A row's bits are the same whatever rows are beside it, whether positions are
    given or not as long as it sees the same slots, and with `num_slots` as a number or on the
    device; they differ between paths, tiles, and caches of another capacity. The path follows from
    the number of rows: whoever compares rows that come alone and with others pins it.

    Args:
        queries: as in the reference; contiguous.
        keys: as in the reference, each head contiguous: a view of a larger cache's first slots may
            be given, but decides the splits by its own length.
        values: like `keys`, with the same strides.
        num_slots: as in the reference. As a tensor, (1,) int32, it is read on the device.
        row_positions: as in the reference.
        slot_positions: as in the reference.
        weights: as in the reference; contiguous rows, as many columns as `num_slots`, or as the
            capacity where `num_slots` is a tensor.
        add: as in the reference.
        out: receives the result instead of a new tensor.
        workspace: from `workspace_for`, otherwise allocated; one must not serve two launches that
            run at the same time.
        path: "vector" (one row and one query head per KV head; float32 throughout), "dot" (tensor
            cores; shares are rounded to the values' dtype) or "wide" (the same with keys and values
            read once for many rows; not for float32). The default is vector where it can be, dot
            for up to 16 query heads of all rows per KV head and for float32, wide for more.
        tile: the default is the path's own.

    Raises:
        ValueError: shapes, dtypes or memory layout are not as described, or the path cannot do it.
    """
    num_rows, num_heads, head_dim = queries.shape
    check_slots(queries, keys, values, num_slots, row_positions, slot_positions, weights)
    path = _choose_path(path, num_rows, num_heads // keys.shape[0], keys.itemsize)
    out = torch.empty_like(queries) if out is None else out
    if out.shape != queries.shape or out.dtype != queries.dtype or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} {out.dtype} must be like the queries, contiguous")
    if not num_rows:
        return out
    tile = tile or default_tile(path, keys)
    if workspace is None:
        workspace = workspace_for(
            keys, num_rows, num_heads, with_weights=weights is not None, path=path, tile=tile
        )
    num_splits = _num_splits(path, tile, keys, num_heads)
    _check_workspace(workspace, num_rows * num_heads, num_splits, keys, weights is not None)
    on_device = isinstance(num_slots, Tensor)
    count = 0 if isinstance(num_slots, Tensor) else num_slots
    num_used = num_slots if isinstance(num_slots, Tensor) else workspace.largest
    block = tile.block(head_dim, keys.itemsize)
    head = {"HEAD_DIM": head_dim, "HEAD_PAD": max(16, triton.next_power_of_2(head_dim))}
    with torch.cuda.device_of(queries):
        _launch_parts(
            (queries, keys, values, row_positions, slot_positions, num_used),
            workspace,
            (count, keys.stride(0) // head_dim, num_splits, keys.shape[1]),
            path,
            tile,
            BLOCK=block,
            ON_DEVICE=on_device,
            KEEP_SCORES=weights is not None,
            **early(queries),
            **head,
        )
        splits_pad = triton.next_power_of_2(num_splits)
        # Few splits are one warp's: it waits for no other, and more programs run at a time.
        num_warps = max(1, min(_MAX_WARPS, splits_pad // _WARP_SPLITS))
        combine_kernel[(num_rows * num_heads,)](
            workspace.sums,
            workspace.largest,
            workspace.totals,
            num_used,
            workspace.log_sums,
            out,
            count,
            num_splits,
            SPLITS_PAD=splits_pad,
            CHUNK=min(_WARP_SPLITS * num_warps, splits_pad),
            BLOCK=block,
            ON_DEVICE=on_device,
            num_warps=num_warps,
            **early(queries),
            **head,
        )
        if weights is not None:
            columns = keys.shape[1] if on_device else count
            weights_kernel[(triton.cdiv(columns, _WEIGHT_SLOTS), num_rows)](
                workspace.scores,
                workspace.log_sums,
                num_used,
                weights,
                count,
                num_heads,
                keys.shape[1],
                weights.stride(0),
                HEADS=min(_WEIGHT_HEADS, triton.next_power_of_2(num_heads)),
                BLOCK=_WEIGHT_SLOTS,
                ADD=add,
                ON_DEVICE=on_device,
                num_warps=4,
                **early(queries),
            )
    return out


def _launch_parts(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor],
    workspace: Workspace,
    counts: tuple[int, int, int, int],
    path: str,
    tile: Tile,
    **constants: int,
) -> None:
    """Launch the first kernel: every split's part of the sums."""
    queries, keys, values, row_positions, slot_positions, num_used = tensors
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads, num_splits = keys.shape[0], counts[2]
    group = num_heads // num_kv_heads
    arguments = (
        queries,
        keys,
        values,
        workspace.largest if row_positions is None else row_positions,
        workspace.largest if slot_positions is None else slot_positions,
        num_used,
        workspace.sums,
        workspace.largest,
        workspace.totals,
        workspace.scores,
        *counts,
    )
    common = {
        "STAGES": tile.num_stages,
        "BY_POSITION": row_positions is not None,
        "num_warps": tile.num_warps,
        **constants,
    }
    scale = math.log2(math.e) * head_dim**-0.5
    if path == "vector":
        vector_kernel[(num_splits, num_kv_heads)](*arguments, scale, **common)
    else:
        blocks = triton.cdiv(num_rows * group, tile.num_rows)
        dot_kernel[(blocks, num_splits, num_kv_heads)](
            *arguments,
            num_rows,
            scale,
            GROUP=group,
            BLOCK_M=tile.num_rows,
            WIDEN=not queries.is_cuda,
            **common,
        )


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _NO_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _is_hopper(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _num_splits(path: str, tile: Tile, keys: Tensor, num_heads: int) -> int:
    """Return the splits of a path: the same for any number of rows, or their bits would differ."""
    return tile.num_splits(keys, num_heads if path == "wide" else keys.shape[0])


def _choose_path(path: str | None, num_rows: int, group: int, itemsize: int) -> str:
    """Return the path asked for if it can do it, else the default."""
    if path is None:
        return default_path(num_rows, group, itemsize)
    if path not in PATHS:
        raise ValueError(f"path {path!r} is not one of {', '.join(PATHS)}")
    if path == "vector" and num_rows * group != 1:
        raise ValueError(f"path 'vector' is for one row without groups, not {num_rows} of {group}")
    if path == "wide" and itemsize == 4:
        raise ValueError("path 'wide' is for elements of 16 bits, float32 needs 'dot'")
    return path


def _check_workspace(
    workspace: Workspace, heads: int, num_splits: int, keys: Tensor, with_weights: bool
) -> None:
    parts, (_, capacity, head_dim) = heads * num_splits, keys.shape
    if (
        workspace.sums.numel() < parts * head_dim
        or min(workspace.largest.numel(), workspace.totals.numel()) < parts
        or workspace.log_sums.numel() < heads
        or (with_weights and workspace.scores.numel() < heads * capacity)
    ):
        raise ValueError("the workspace is for fewer rows or heads, other tiles or a smaller cache")
