"""Launches of the kernels that turn cached keys and write a forward pass's rows into the cache.

The device code is in `device.py`; the references, with the same signatures and the meaning of
every argument, in `reference.py`. Rotation is in float32 and rounded once to the cache's dtype.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .device import rope_shift_kernel, write_rows_kernel


class Tile(NamedTuple):
    """How the work of one launch is cut.

    Attributes:
        num_bytes: of a head's slots that a program reads before it writes; a power of two.
        heads: heads (of any layer) that a program goes through with the same angles in registers.
            Angles are float32 and as many bytes as the key itself in bfloat16: read again for
            every head, they would double what passes the second-level cache.
        num_warps: of one program.
        grouped_slots: slots that go through all heads together; the angles of so many, 2 to 4 MB,
            stay in a second-level cache.
    """

    num_bytes: int
    heads: int
    num_warps: int
    grouped_slots: int = 8192

    def rows(self, head_dim: int, itemsize: int) -> int:
        """Return the slots of one program."""
        return max(1, self.num_bytes // (triton.next_power_of_2(head_dim) * itemsize))


# The best of 45 on an H100; `benchmarks/bench_kernels.py --only rope_shift --sweep` tries others.
TURN_TILE = Tile(num_bytes=4096, heads=16, num_warps=8)
# One layer's rows: few while decoding, where small programs start soonest; more in a prefill.
_FEW_ROWS = 64
_FEW_TILE = Tile(num_bytes=1024, heads=1, num_warps=1)
_MANY_TILE = Tile(num_bytes=8192, heads=1, num_warps=4)


def rope_shift(
    unrotated: Tensor,
    rotated: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> None:
    """Turn cached keys in one launch for all layers and heads; see `reference.rope_shift`.

    Slots that are not listed are neither read nor written. Whether the tables have the positions is
    not checked.

    Raises:
        ValueError: shapes, dtypes or memory layout are not as the reference asks, or a tensor is
            not contiguous.
    """
    turn(unrotated, rotated, slots, positions, cos, sin, interleaved, TURN_TILE)


def turn(
    unrotated: Tensor,
    rotated: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    tile: Tile,
) -> None:
    """Do as `rope_shift` does, cut as `tile` says."""
    num_layers, num_kv_heads, num_slots, head_dim = unrotated.shape
    _check(unrotated, (rotated,), slots, cos, sin)
    if positions.shape != slots.shape or positions.dtype != torch.int64:
        raise ValueError(f"positions {tuple(positions.shape)} {positions.dtype} for the slots")
    num_heads = num_layers * num_kv_heads
    if not len(slots) or not num_heads:
        return
    constants = _constants(head_dim, cos.shape[-1], unrotated.itemsize, tile)
    row_blocks = triton.cdiv(len(slots), constants["ROWS"])
    num_groups = triton.cdiv(len(slots), tile.grouped_slots)
    turned_blocks = triton.cdiv(row_blocks, num_groups)
    num_programs = num_groups * turned_blocks * triton.cdiv(num_heads, tile.heads)
    with torch.cuda.device_of(unrotated):
        rope_shift_kernel[(num_programs,)](
            unrotated,
            rotated,
            slots,
            positions,
            cos,
            sin,
            len(slots),
            num_slots,
            num_heads,
            turned_blocks,
            INTERLEAVED=interleaved,
            HEADS=tile.heads,
            **constants,
        )


def write_rows(
    qkv: Tensor,
    unrotated: Tensor,
    rotated: Tensor,
    values: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> Tensor:
    """Rotate and store one layer's rows in one launch; see `reference.write_rows`.

    A row's result does not depend on the others.

    Raises:
        ValueError: as `rope_shift`.
    """
    num_rows, num_projected, head_dim = qkv.shape
    num_kv_heads, num_slots = rotated.shape[:2]
    num_heads = num_projected - 2 * num_kv_heads
    _check(unrotated, (rotated, values), slots, cos, sin)
    if len(cos) != num_rows:
        raise ValueError(f"angles of {len(cos)} rows for {num_rows} rows")
    if num_heads < 0 or qkv.dtype != rotated.dtype or not qkv.is_contiguous():
        raise ValueError(
            f"qkv {tuple(qkv.shape)} {qkv.dtype} must be contiguous, have {2 * num_kv_heads} heads "
            f"of keys and values, and the cache's {rotated.dtype}"
        )
    if num_rows != len(slots) or head_dim != rotated.shape[-1]:
        raise ValueError(
            f"qkv {tuple(qkv.shape)} must be {len(slots)} rows of heads of {rotated.shape[-1]}"
        )
    queries = qkv.new_empty(num_rows, num_heads, head_dim)
    if not num_rows:
        return queries
    tile = _FEW_TILE if num_rows <= _FEW_ROWS else _MANY_TILE
    constants = _constants(head_dim, cos.shape[-1], qkv.itemsize, tile)
    grid = (num_projected, triton.cdiv(num_rows, constants["ROWS"]))
    with torch.cuda.device_of(qkv):
        write_rows_kernel[grid](
            qkv,
            queries,
            unrotated,
            rotated,
            values,
            slots,
            cos,
            sin,
            num_rows,
            num_slots,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_PAD=triton.next_power_of_2(head_dim),
            INTERLEAVED=interleaved,
            **constants,
        )
    return queries


@functools.cache  # the host has nothing to do twice where it launches in microseconds
def _constants(head_dim: int, half: int, itemsize: int, tile: Tile) -> Mapping[str, int]:
    """Return what describes a head and a program; tiles are powers of two."""
    tail = head_dim - 2 * half
    return {
        "HEAD_DIM": head_dim,
        "HALF": half,
        "HALF_PAD": triton.next_power_of_2(half),
        "TAIL_PAD": triton.next_power_of_2(tail) if tail else 0,
        "ROWS": tile.rows(head_dim, itemsize),
        "num_warps": tile.num_warps,
    }


def _check(unrotated: Tensor, others: tuple[Tensor, ...], slots: Tensor, *angles: Tensor) -> None:
    """Raise ValueError unless the tensors fit: a wrong shape would read or write past the end."""
    for other in others:
        if other.shape != unrotated.shape or other.dtype != unrotated.dtype:
            raise ValueError(
                f"caches differ: {tuple(unrotated.shape)} {unrotated.dtype} and "
                f"{tuple(other.shape)} {other.dtype}"
            )
    shape = angles[0].shape
    for part in angles:
        if (
            part.dtype != torch.float32
            or part.shape != shape
            or 2 * shape[-1] > unrotated.shape[-1]
        ):
            raise ValueError(
                f"angles {tuple(part.shape)} {part.dtype} must be (positions, rotary_dim / 2) "
                f"float32, rotary_dim at most {unrotated.shape[-1]}"
            )
    if slots.dtype != torch.int64:
        raise ValueError(f"slots are {slots.dtype}, must be int64")
    if not all(part.is_contiguous() for part in (unrotated, *others, slots, *angles)):
        raise ValueError("caches, slots and angles must be contiguous")
