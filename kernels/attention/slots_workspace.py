"""Memory that the programs of attention over slots share: their parts, and who has stored his."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .slots_tiles import PATHS, Tile, cut_for, default_tile

# Locks of a device: KV heads times blocks of their query heads, of any launch that is usual.
_NUM_LOCKS = 1024
# Never freed or moved, since captured graphs have their addresses.
_device_locks: dict[torch.device, Tensor] = {}


@dataclass(frozen=True, slots=True)
class Workspace:
    """Memory for the parts of up to `num_rows` rows, for caches of one shape; see `workspace_for`.

    Attributes:
        sums: float32, the parts' weighted values.
        largest: float32, the parts' largest scores.
        totals: float32, the parts' sums of exponentials.
        locks: int32 zeros, one for each block of query heads whose last program adds up the parts;
            the kernels leave them zero. Two launches at the same time must not share them.
        log_sums: float32, per row and head.
        scores: float32, per row, head and slot; empty where no weights are wanted.
    """

    sums: Tensor
    largest: Tensor
    totals: Tensor
    locks: Tensor
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
    num_locks = max(
        _num_locks(keys, num_rows, num_heads, each, tile or default_tile(each, keys))
        for each in ((path,) if path else PATHS)
    )
    locks = torch.zeros(num_locks, dtype=torch.int32, device=keys.device)
    return _workspace(keys, num_rows, num_heads, with_weights, path, tile, locks)


def workspace_of_call(
    keys: Tensor, num_rows: int, num_heads: int, with_weights: bool, path: str, tile: Tile
) -> Workspace:
    """Reserve the same for one call, but with the device's own locks: to zero others is a launch.

    So all calls on one device must follow each other, as those on one stream do.
    """
    num_locks = _num_locks(keys, num_rows, num_heads, path, tile)
    locks = _locks_of(keys.device, num_locks)
    return _workspace(keys, num_rows, num_heads, with_weights, path, tile, locks)


def check_workspace(
    workspace: Workspace,
    keys: Tensor,
    num_rows: int,
    num_heads: int,
    with_weights: bool,
    path: str,
    tile: Tile,
) -> None:
    """Raise ValueError unless the workspace has room for a call; arguments as above."""
    heads, (_, capacity, head_dim) = num_rows * num_heads, keys.shape
    parts = heads * cut_for(path, tile, keys, num_heads).num_splits
    if (
        workspace.sums.numel() < parts * head_dim
        or min(workspace.largest.numel(), workspace.totals.numel()) < parts
        or workspace.locks.numel() < _num_locks(keys, num_rows, num_heads, path, tile)
        or workspace.log_sums.numel() < heads
        or (with_weights and workspace.scores.numel() < heads * capacity)
    ):
        raise ValueError("the workspace is for fewer rows or heads, other tiles or a smaller cache")


def _workspace(
    keys: Tensor,
    num_rows: int,
    num_heads: int,
    with_weights: bool,
    path: str | None,
    tile: Tile | None,
    locks: Tensor,
) -> Workspace:
    heads = num_rows * num_heads
    parts = heads * max(
        cut_for(each, tile or default_tile(each, keys), keys, num_heads).num_splits
        for each in ((path,) if path else PATHS)
    )

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=keys.device)

    return Workspace(
        sums=room(parts, keys.shape[-1]),
        largest=room(parts),
        totals=room(parts),
        locks=locks,
        log_sums=room(heads),
        scores=room(heads, keys.shape[1] if with_weights else 0),
    )


def _num_locks(keys: Tensor, num_rows: int, num_heads: int, path: str, tile: Tile) -> int:
    cut = cut_for(path, tile, keys, num_heads)
    return len(keys) * cut.num_blocks(num_rows, num_heads // len(keys)) if cut.is_combined else 0


def _locks_of(device: torch.device, num_locks: int) -> Tensor:
    """Return zeros that every call on a device may use, or new ones where it needs too many."""
    found = _device_locks.get(device)
    if found is not None and num_locks <= len(found):
        return found
    with torch.inference_mode(False):  # whoever comes first, all may write
        made = torch.zeros(max(num_locks, _NUM_LOCKS), dtype=torch.int32, device=device)
    # What is made while a graph is captured is that graph's, and zero only when it has run.
    is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if found is None and not is_captured:
        _device_locks[device] = made
    return made
