"""Which kernel attends, and how the work of one launch is cut.

All of it follows from the cache's shape and dtype, the number of query heads and the device, but
never from the number of rows or of slots in use: a row's bits do not depend on the rows beside it,
and a captured graph survives a cache whose length changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

PATHS = ("vector", "dot", "wide")
# Folded rows, query heads of one KV head, up to which they fit one tile of "dot".
_NARROW = 16
# More slots in one step would need more registers than there are to keep their scores.
_MAX_BLOCK = 64
# Bytes of parts up to which the last program of a launch adds them up: one multiprocessor reads as
# many in the 1.2 us or so that a second launch, on all multiprocessors, would take longer.
_COMBINED_BYTES = 128 << 10
# Bytes of a layer up to which a row waits for them longer than it reads them. Then two programs may
# read the same keys, each for half of the query heads: from so many heads of one KV head on, where
# as many splits remain in one wave.
_SHORT_BYTES, _HALVED_GROUP, _HALVED_SPLITS = 12 << 20, 4, 32
# Of parts and splits that this program adds up at a time; as many again are under way meanwhile.
_CHUNK_ELEMENTS, _CHUNK_SPLITS = 4096, 32
# What the interpreter has instead of multiprocessors: a few splits, so that there are some.
_NO_PROCESSORS = 4


class Tile(NamedTuple):
    """How the work of one program is cut.

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


def choose_path(path: str | None, num_rows: int, group: int, itemsize: int) -> str:
    """Return the path asked for if it can do it, else the default.

    Raises:
        ValueError: there is no such path, or it is for other rows or dtypes.
    """
    if path is None:
        return default_path(num_rows, group, itemsize)
    if path not in PATHS:
        raise ValueError(f"path {path!r} is not one of {', '.join(PATHS)}")
    if path == "vector" and num_rows * group != 1:
        raise ValueError(f"path 'vector' is for one row without groups, not {num_rows} of {group}")
    if path == "wide" and itemsize == 4:
        raise ValueError("path 'wide' is for elements of 16 bits, float32 needs 'dot'")
    return path


def default_tile(path: str, keys: Tensor) -> Tile:
    """Return the tile of a path for a cache of that dtype on that device."""
    if path == "vector":
        return VECTOR_TILE
    if path == "wide":
        return WIDE_TILE if _is_hopper(keys.device) else WIDE_TILE_BEFORE_HOPPER
    return _FLOAT_TILE if keys.itemsize == 4 else DOT_TILE


class Cut(NamedTuple):
    """How slots and query heads are shared out between programs.

    Attributes:
        num_splits: programs that share the slots of one KV head.
        num_heads: query heads of one KV head, of any rows, that a program takes; tile.num_rows at
            most.
        is_combined: the last program of those that share slots adds up their parts; otherwise a
            second launch does.
    """

    num_splits: int
    num_heads: int
    is_combined: bool

    def num_blocks(self, num_rows: int, group: int) -> int:
        """Return the programs that share the query heads of one KV head, for so many rows."""
        return triton.cdiv(num_rows * group, self.num_heads)

    def constants(self, head_pad: int) -> dict[str, int]:
        """Return what kernels are compiled for, with heads padded to so many elements."""
        splits_pad = triton.next_power_of_2(self.num_splits)
        if not self.is_combined:
            return {"COMBINED": 0, "SPLITS_PAD": splits_pad, "CHUNK": 0}
        heads = triton.next_power_of_2(self.num_heads)
        chunk = min(_CHUNK_SPLITS, splits_pad, _CHUNK_ELEMENTS // (heads * head_pad))
        return {"COMBINED": heads, "SPLITS_PAD": splits_pad, "CHUNK": max(1, chunk)}


def cut_for(
    path: str, tile: Tile, keys: Tensor, num_heads: int, num_processors: int | None = None
) -> Cut:
    """Return how a path cuts the work: into one wave of programs at most for a row.

    Args:
        path: one of PATHS.
        tile: of that path.
        keys: a cache layer.
        num_heads: query heads.
        num_processors: multiprocessors that share the work; None asks the cache's device.
    """
    num_kv_heads, capacity, head_dim = keys.shape
    blocks = triton.cdiv(capacity, tile.block(head_dim, keys.itemsize))
    wave = tile.programs * (num_processors or _num_processors(keys.device))
    if path == "wide":
        # Each KV head has about as many tiles as query heads. Many rows make many parts, which as
        # many programs of a second launch read at once.
        return Cut(max(1, min(wave // num_heads, blocks)), tile.num_rows, is_combined=False)
    wave, group = wave // num_kv_heads, num_heads // num_kv_heads
    num_bytes = triton.next_power_of_2(head_dim) * 4  # of a part
    is_short = 2 * keys[0].numel() * keys.itemsize * num_kv_heads <= _SHORT_BYTES
    if (
        path == "dot"
        and keys.itemsize == 2
        and is_short
        and _HALVED_GROUP <= group <= 2 * tile.num_rows
        and wave // 2 >= _HALVED_SPLITS
    ):
        # Few KV heads leave multiprocessors without work. Shorter splits would give them some, but
        # one program had more parts to read, and took longer for it than that saves.
        half = triton.cdiv(group, 2)
        return Cut(min(wave // 2, blocks, _COMBINED_BYTES // (half * num_bytes)), half, True)
    num_splits = max(1, min(wave, blocks))
    most = 1 if path == "vector" else tile.num_rows
    heads = min(most, _COMBINED_BYTES // (num_splits * num_bytes))
    # On the path "dot" float32 comes with any number of rows, and matters less.
    is_combined = heads >= min(group, most) and (path == "vector" or keys.itemsize == 2)
    return Cut(num_splits, heads if is_combined else most, is_combined)


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _NO_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _is_hopper(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
