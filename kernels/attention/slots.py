"""Attention of a few rows over the slots of a cache, in arbitrary order, on a GPU.

The device code is in `slots_device.py` and `slots_combine.py`;
`reference.py` has the same signature in plain torch and says what is promised. The slots
are split between programs, whose parts are added up in a fixed order: by the last program of the
same launch where they are few, else by a second launch. `slots_tiles.py` says which.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .slots_checks import check_slots
from .slots_combine import combine_kernel, weights_kernel
from .slots_device import dot_kernel, vector_kernel
from .slots_tiles import Cut, Tile, choose_path, cut_for, default_tile
from .slots_workspace import Workspace, check_workspace, workspace_of_call

# Splits that a warp of the second launch adds up at a time, and its warps at most.
_WARP_SPLITS, _MAX_WARPS = 16, 4
# Heads and slots of a program of the launch for weights.
_WEIGHT_HEADS, _WEIGHT_SLOTS = 32, 128


class _Call(NamedTuple):
    """What all launches of one call are given, after checks.

    Attributes:
        num_used: (1,) int32 on the device where `is_on_device`.
        num_slots: in use, otherwise.
        out: receives the result.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    row_positions: Tensor | None
    slot_positions: Tensor | None
    num_used: Tensor
    num_slots: int
    is_on_device: bool
    out: Tensor
    workspace: Workspace
    cut: Cut
    path: str
    tile: Tile

    def constants(self) -> dict[str, Any]:
        """Return what several kernels are compiled for."""
        head_dim = self.queries.shape[2]
        return {
            "HEAD_DIM": head_dim,
            "HEAD_PAD": max(16, triton.next_power_of_2(head_dim)),
            "BLOCK": self.tile.block(head_dim, self.keys.itemsize),
            "ON_DEVICE": self.is_on_device,
        }


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
    """Attend from every row to the slots it may see; see `reference.attend_slots`.

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
        workspace: from `workspace_for`, otherwise allocated; one must not serve two calls that run
            at the same time. Calls without one share locks: on each device one stream owns them.
        path: "vector" (one row and one query head per KV head; float32 throughout), "dot" (tensor
            cores; shares are rounded to the values' dtype) or "wide" (the same with keys and values
            read once for many rows; not for float32). The default is vector where it can be, dot
            for up to 16 query heads of all rows per KV head and for float32, wide for more.
        tile: the default is the path's own.

    Raises:
        ValueError: shapes, dtypes or memory layout are not as described, or the path cannot do it.
    """
    num_rows, num_heads, _ = queries.shape
    check_slots(queries, keys, values, num_slots, row_positions, slot_positions, weights)
    path = choose_path(path, num_rows, num_heads // len(keys), keys.itemsize)
    out = torch.empty_like(queries) if out is None else out
    if out.shape != queries.shape or out.dtype != queries.dtype or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} {out.dtype} must be like the queries, contiguous")
    if not num_rows:
        return out
    tile = tile or default_tile(path, keys)
    needed = (keys, num_rows, num_heads, weights is not None, path, tile)
    if workspace is None:
        workspace = workspace_of_call(*needed)
    check_workspace(workspace, *needed)
    is_on_device = isinstance(num_slots, Tensor)
    call = _Call(
        queries,
        keys,
        values,
        row_positions,
        slot_positions,
        num_slots if isinstance(num_slots, Tensor) else workspace.largest,
        0 if isinstance(num_slots, Tensor) else num_slots,
        is_on_device,
        out,
        workspace,
        cut_for(path, tile, keys, num_heads),
        path,
        tile,
    )
    with torch.cuda.device_of(queries):
        _launch_parts(call, weights is not None)
        if not call.cut.is_combined:
            _launch_combination(call)
        if weights is not None:
            _launch_weights(call, weights, add)
    return out


def _launch_parts(call: _Call, keep_scores: bool) -> None:
    """Launch the first kernel: every split's part of the sums, and, if they are few, their sum."""
    num_rows, num_heads, head_dim = call.queries.shape
    num_kv_heads, capacity, _ = call.keys.shape
    group, workspace, cut = num_heads // num_kv_heads, call.workspace, call.cut
    arguments = (
        call.queries,
        call.keys,
        call.values,
        workspace.largest if call.row_positions is None else call.row_positions,
        workspace.largest if call.slot_positions is None else call.slot_positions,
        call.num_used,
        workspace.sums,
        workspace.largest,
        workspace.totals,
        workspace.scores,
        workspace.locks,
        workspace.log_sums,
        call.out,
        call.num_slots,
        call.keys.stride(0) // head_dim,
        cut.num_splits,
        capacity,
    )
    constants = call.constants()
    constants |= cut.constants(constants["HEAD_PAD"]) | {
        "STAGES": call.tile.num_stages,
        "BY_POSITION": call.row_positions is not None,
        "KEEP_SCORES": keep_scores,
        "num_warps": call.tile.num_warps,
    }
    scale = math.log2(math.e) * head_dim**-0.5
    if call.path == "vector":
        vector_kernel[(cut.num_splits, num_kv_heads)](*arguments, scale, **constants)
    else:
        dot_kernel[(cut.num_blocks(num_rows, group), cut.num_splits, num_kv_heads)](
            *arguments,
            num_rows,
            scale,
            GROUP=group,
            BLOCK_M=call.tile.num_rows,
            BLOCK_HEADS=cut.num_heads,
            WIDEN=not call.queries.is_cuda,
            **constants,
        )


def _launch_combination(call: _Call) -> None:
    """Launch the second kernel: the sum of the parts."""
    num_rows, num_heads, _ = call.queries.shape
    workspace, splits_pad = call.workspace, triton.next_power_of_2(call.cut.num_splits)
    # Few splits are one warp's: it waits for no other, and more programs run at a time.
    num_warps = max(1, min(_MAX_WARPS, splits_pad // _WARP_SPLITS))
    combine_kernel[(num_rows * num_heads,)](
        workspace.sums,
        workspace.largest,
        workspace.totals,
        call.num_used,
        workspace.log_sums,
        call.out,
        call.num_slots,
        call.cut.num_splits,
        SPLITS_PAD=splits_pad,
        CHUNK=min(_WARP_SPLITS * num_warps, splits_pad),
        num_warps=num_warps,
        **call.constants(),
    )


def _launch_weights(call: _Call, weights: Tensor, add: bool) -> None:
    """Launch the last kernel: attention weights of what scores the first one kept."""
    num_rows, num_heads, _ = call.queries.shape
    capacity = call.keys.shape[1]
    columns = capacity if call.is_on_device else call.num_slots
    weights_kernel[(triton.cdiv(columns, _WEIGHT_SLOTS), num_rows)](
        call.workspace.scores,
        call.workspace.log_sums,
        call.num_used,
        weights,
        call.num_slots,
        num_heads,
        capacity,
        weights.stride(0),
        HEADS=min(_WEIGHT_HEADS, triton.next_power_of_2(num_heads)),
        BLOCK=_WEIGHT_SLOTS,
        ADD=add,
        ON_DEVICE=call.is_on_device,
        num_warps=4,
    )
