"""Tries tiles for the matmuls with packed weights and writes `kernels/matmul/measured.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu import matmul_rivals
from gpu.kernel_timer import Bench, captured
from harness import ROOT
from torch import Tensor

from keyturn.kernels.matmul import quant as quant_matmul
from keyturn.kernels.matmul.bit_planes import launch as bit_matmul
from keyturn.kernels.matmul.measured import MEASURED
from keyturn.kernels.matmul.table import DotTile, GemvTile, MmaTile, default_plan

KINDS = ("q4", "q8", "b4", "b2", "b3", "b8", "b6")  # what matters first, should time run out
TABLE = ROOT / "kernels" / "matmul" / "measured.py"
# In one graph at least: to start it takes microseconds.
MIN_CALLS = 16
_DOT_ROWS = 16
_MMA_ROWS = 8
_NEVER_DENSE = 65

Maker = Callable[[int, int, int, torch.device], Any]


def tune(
    bench: Bench,
    shapes: dict[str, list[tuple[int, int]]],
    kinds: list[str],
    table: Path,
    make_quant: Maker,
    make_planes: Maker,
) -> None:
    """Fill the table for this GPU; written after each kind, should the time run out.

    `shapes` are those of quantised weights, "q", and of bit planes, "b".
    """
    gpu = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    gpu = next((name for name in ("H100", "H200", "A100") if name in gpu), gpu)
    measured = {name: dict(entries) for name, entries in MEASURED.items()}
    for kind in kinds:
        make = make_quant if kind[0] == "q" else make_planes
        entries = measured.setdefault(gpu, {}).setdefault(kind, {})
        for num_out, num_in in shapes[kind[0]]:
            bits = int(kind[1:])
            count = matmul_rivals.num_copies(num_out * num_in * bits // 8, bench.is_tiny)
            weights = [make(num_out, num_in, bits, bench.device) for _ in range(count)]
            entries[f"{num_out}x{num_in}"] = _tune_one(bench, kind, weights)
        write(measured, table)


def write(measured: dict[str, dict[str, dict[str, Any]]], table: Path) -> None:
    """Write the table as a module that the formatter leaves alone."""
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    text = text or TABLE.read_text(encoding="utf-8")
    head = text[: text.index("MEASURED:")]
    lines = [head + "MEASURED: dict[str, dict[str, dict[str, list[list[int]]]]] = {"]
    for gpu, kinds in measured.items():
        lines.append(f"    {json.dumps(gpu)}: {{")
        for kind, entries in kinds.items():
            lines.append(f"        {json.dumps(kind)}: {{")
            lines += [
                f"            {json.dumps(shape)}: {json.dumps(entry)},"
                for shape, entry in entries.items()
            ]
            lines.append("        },")
        lines.append("    },")
    table.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def _tune_one(bench: Bench, kind: str, weights: list[Any]) -> list[list[int]]:
    """Return the tile of every path, and the limits between the paths, for one shape."""
    num_out, num_in = weights[0].shape
    default = default_plan(kind, num_out, num_in)
    gemv, gemv_us = _best(bench, weights, 1, gemv_tiles(kind, num_out, num_in, bench.is_tiny))
    dot, dot_us = _best(bench, weights, _DOT_ROWS, _dot_tiles(kind, num_out, num_in, bench.is_tiny))
    mma, max_mma_rows, told = default.mma, 0, ""
    if kind == "q4" and quant_matmul.takes_mma(weights[0]):
        mma, mma_us = _best(bench, weights, _MMA_ROWS, _mma_tiles(default.mma, bench.is_tiny))
        times = _try(bench, weights, _DOT_ROWS, [mma, dot])
        max_mma_rows = _DOT_ROWS if times[mma] <= times[dot] else _MMA_ROWS
        told = f"{tuple(mma)} {mma_us:.1f} us to {max_mma_rows} rows, "
    max_gemv_rows = 0
    for rows in (1, 2, 4):
        times = _try(bench, weights, rows, [gemv, mma if max_mma_rows else dot])
        if min(times, key=lambda tile: times[tile]) != gemv:
            break
        max_gemv_rows = rows
    min_dense_rows = _NEVER_DENSE
    if kind[0] == "q":
        for rows in (64, 32):
            if _dense_us(bench, weights, rows) >= _try(bench, weights, rows, [dot])[dot]:
                break
            min_dense_rows = rows
    print(
        f"{kind} {num_out}x{num_in}: {tuple(gemv)} {gemv_us:.1f} us to {max_gemv_rows} rows, "
        f"{told}{tuple(dot)} {dot_us:.1f} us, dense from {min_dense_rows}",
        flush=True,
    )
    return [list(gemv), list(mma), list(dot), [max_gemv_rows, max_mma_rows, min_dense_rows]]


def _best(
    bench: Bench, weights: list[Any], num_rows: int, tiles: Iterable[Any]
) -> tuple[Any, float]:
    """Return the fastest tile and its microseconds."""
    times = _try(bench, weights, num_rows, list(tiles))
    best = min(times, key=lambda tile: times[tile])
    return best, times[best]


def gemv_tiles(kind: str, num_out: int, num_in: int, is_tiny: bool) -> Iterator[GemvTile]:
    """Return what is worth a try for packed weights."""
    yield default_plan(kind, num_out, num_in).gemv
    units = num_in // (32 if kind[0] == "b" else 128 // int(kind[1:]))
    if is_tiny:
        return
    # To load ahead costs instructions; without, many programs hide the latency. Which wins depends
    # on the shape.
    for block_n, num_warps, ahead in itertools.product((2, 4, 8, 16), (1, 2, 4), (0, 1)):
        if block_n == 16 and (kind[0] == "q" or num_out < 8192):
            continue  # registers
        if ahead and (kind[0] == "b" or units <= 32 * num_warps):
            continue  # bit planes do not, or there is nothing to load
        if 32 * (num_warps // 2) < units:
            yield GemvTile(block_n, 32 * num_warps, num_warps, ahead)


def _mma_tiles(default: MmaTile, is_tiny: bool) -> Iterator[MmaTile]:
    yield default
    if not is_tiny:
        for num_warps, ahead in itertools.product((2, 4, 8, 16), (1, 2)):
            yield MmaTile(16, num_warps, ahead)
        yield from (MmaTile(32, num_warps, 1) for num_warps in (2, 4, 8))


def _dot_tiles(kind: str, num_out: int, num_in: int, is_tiny: bool) -> Iterator[DotTile]:
    yield default_plan(kind, num_out, num_in).dot
    unit = 32 if kind[0] == "b" else 128 // int(kind[1:])
    if is_tiny:
        return
    for block_n, block_k, split in itertools.product((32, 64, 128), (64, 128), (1, 2, 4, 8)):
        programs = -(-num_out // block_n) * split
        if kind[0] == "b" and (block_n == 32 or block_k == 64):
            continue
        if kind == "q4" and block_k == 64:
            continue  # half a span
        if split == 1 or (100 <= programs <= 1200 and num_in // block_k >= 4 * split):
            yield DotTile(block_n, block_k // unit, split, 4, 3)


def _try(bench: Bench, weights: list[Any], num_rows: int, tiles: list[Any]) -> dict[Any, float]:
    """Return the microseconds of every tile that this GPU can run."""
    num_out, num_in = weights[0].shape
    x = torch.randn(num_rows, num_in, dtype=torch.bfloat16, device=bench.device)
    out = torch.empty(num_rows, num_out, dtype=torch.bfloat16, device=bench.device)
    graphs, calls = {}, len(weights) if bench.is_tiny else max(len(weights), MIN_CALLS)
    for tile in dict.fromkeys(tiles):
        run = _call(x, out, itertools.cycle(weights), tile)
        try:
            graphs[tile] = captured(run, bench.device, calls)
        except Exception as error:  # too much shared memory, for instance
            print(f"{tile}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    times = bench.measure(graphs, calls)
    return {tile: value.p50_us for tile, value in times.items()}


def _call(x: Tensor, out: Tensor, weights: Iterator[Any], tile: Any) -> Callable[[], None]:  # noqa: ANN401
    def run() -> None:
        weight = next(weights)
        module = quant_matmul if hasattr(weight, "words") else bit_matmul
        if isinstance(tile, GemvTile):
            module.gemv(x, weight, None, out, tile)
        elif isinstance(tile, MmaTile):
            quant_matmul.mma(x, weight, None, out, tile)
        elif module is quant_matmul:
            quant_matmul.dot(x, weight, None, out, tile)
        else:
            bit_matmul.dot(x, None, weight, None, out, tile)

    return run


def _dense_us(bench: Bench, weights: list[Any], num_rows: int) -> float:
    x = torch.randn(num_rows, weights[0].shape[1], dtype=torch.bfloat16, device=bench.device)
    turn = itertools.cycle(weights)
    run = captured(
        lambda: quant_matmul.quant_matmul(x, next(turn), path="dense"), bench.device, len(weights)
    )
    return bench.measure({"dense": run}, len(weights))["dense"].p50_us
