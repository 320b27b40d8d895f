"""How a matmul with packed weights is cut and which path serves how many rows, per GPU.

`measured.py` holds what `benchmarks/bench_matmul.py --tune` found; other GPUs and shapes get
the nearest measured shape's plan, or the default. A plan never depends on the number of rows, or a
row's bits would.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from .measured import MEASURED

# What 3 TB/s and 700 ns of latency have under way, twice.
_IN_FLIGHT = 4 << 20


class GemvTile(NamedTuple):
    """Output features and units (16 bytes a row; bit planes: words) a program takes at a time.

    With `ahead` it loads what comes next before it multiplies: what 1 says, 0 leaves to others.
    """

    block_n: int
    block_u: int
    num_warps: int
    ahead: int


class MmaTile(NamedTuple):
    """Output features a program takes at a time, warps that share K, steps that loads are ahead."""

    block_n: int
    num_warps: int
    ahead: int


class DotTile(NamedTuple):
    """As GemvTile; `split` programs share the columns of one output tile."""

    block_n: int
    block_u: int
    split: int
    num_warps: int
    num_stages: int


class Plan(NamedTuple):
    """What serves a weight.

    Attributes:
        gemv: tile of the path for few rows.
        mma: tile of the tensor core path that keeps 4-bit weights in registers.
        dot: tile of the tensor core path for all weights.
        max_gemv_rows: up to so many rows take gemv.
        max_mma_rows: up to so many take mma, if the weight lets it.
        min_dense_rows: from so many rows on the weight is dequantised and multiplied by cuBLAS.
    """

    gemv: GemvTile
    mma: MmaTile
    dot: DotTile
    max_gemv_rows: int
    max_mma_rows: int
    min_dense_rows: int


# GPUs with the same multiprocessors as a measured one.
_LIKE = {"H200": "H100", "H800": "H100"}
_NO_MMA = MmaTile(16, 4, 1)  # for what the path does not take


def plan_for(device: torch.device, kind: str, num_out: int, num_in: int) -> Plan:
    """Return the plan for a weight.

    Args:
        device: where it lives.
        kind: "q4", "q8", "b2" to "b8" for bit planes, "d16" for bf16 and fp16.
        num_out: N.
        num_in: K.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return choose_plan(name, kind, num_out, num_in)


@functools.cache
def choose_plan(gpu: str, kind: str, num_out: int, num_in: int) -> Plan:
    """Return the plan for a weight on the GPU of that name; see `plan_for`."""
    # "H100" serves every H100, whatever its memory or case; the longest key is the most specific.
    keys = sorted((key for key in MEASURED if key and key in gpu), key=len)
    if not keys:
        keys = [like for name, like in _LIKE.items() if name in gpu and like in MEASURED]
    entries: Mapping[str, list[list[int]]] = MEASURED[keys[-1]].get(kind, {}) if keys else {}
    if not entries:
        return default_plan(kind, num_out, num_in)

    def distance(shape: str) -> float:
        there = [int(part) for part in shape.split("x")]
        return math.dist([math.log(part) for part in there], [math.log(num_out), math.log(num_in)])

    gemv, mma, dot, limits = entries[min(entries, key=distance)]
    return Plan(GemvTile(*gemv), MmaTile(*mma), DotTile(*dot), *limits)


def default_plan(kind: str, num_out: int, num_in: int) -> Plan:
    """Return a plan that is sound on any GPU: enough programs to fill it, busy threads along K."""
    if kind == "d16":
        return Plan(_dense_tile(num_out, num_in), _NO_MMA, DotTile(64, 16, 1, 4, 3), 4, 0, 5)
    unit = 32 if kind[0] == "b" else 128 // int(kind[1:])
    units = num_in // unit
    # Whole warps along K: with other tiles activations would pass through shared memory. Of the
    # widest programs, those that waste fewest threads on the last, partial step.
    num_warps = max(
        (4, 2, 1), key=lambda warps: units / (32 * math.ceil(units / (32 * warps)) * warps)
    )
    gemv = GemvTile(8 if num_out >= 8192 else 4, 32 * num_warps, num_warps, 0)
    # About two programs for each of some 130 multiprocessors.
    tiles, steps = math.ceil(num_out / 64), math.ceil(num_in / 128)
    split = min(8, _floor_power(256 // tiles), _floor_power(steps))
    dot = DotTile(64, 128 // unit, split, 4, 3)
    if kind != "q4":
        return Plan(gemv, _NO_MMA, dot, 4, 0, 65)
    # Some 2,000 warps, of which each has a few spans to go through.
    warps = min(16, _floor_power(2048 * 16 // num_out), _floor_power(num_in // 384))
    warps = max(2, warps)
    return Plan(gemv, MmaTile(16, warps, 1 if warps >= 8 else 2), dot, 1, 16, 65)


def _dense_tile(num_out: int, num_in: int) -> GemvTile:
    """Return a tile that keeps enough bytes under way and wastes few threads on the last step."""
    units = math.ceil(num_in / 8)
    block_n = 8 if num_out >= 8192 else 4 if num_out >= 3000 else 2
    num_warps = max(
        (2, 4), key=lambda warps: units / (32 * math.ceil(units / (32 * warps)) * warps)
    )
    block_u = 32 * num_warps
    while block_u < min(units, 128 * num_warps) and num_out * block_u * 16 < _IN_FLIGHT:
        block_u *= 2
    return GemvTile(block_n, block_u, num_warps, 1)


def _floor_power(value: int) -> int:
    return 1 << max(value, 1).bit_length() - 1
