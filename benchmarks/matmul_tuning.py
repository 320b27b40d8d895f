"""Tries tiles for the matmuls with packed weights and writes `kernels/matmul_measured.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import ROOT
from kernel_timer import Bench, captured
from torch import Tensor

from keyturn.kernels import bit_matmul, quant_matmul
from keyturn.kernels.matmul_measured import MEASURED
from keyturn.kernels.matmul_table import DotTile, GemvTile, default_plan

KINDS = ("q4", "q8", "b4", "b2", "b3", "b8", "b6")  # what matters first, should time run out
TABLE = ROOT / "kernels" / "matmul_measured.py"
# Distinct weights in one graph; the cache is emptied before each replay.
_COPIES = 6
_DOT_ROWS = 16
_NEVER_DENSE = 65
# About two for each multiprocessor.
_MIN_PROGRAMS = 264

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
            weights = [
                make(num_out, num_in, int(kind[1:]), bench.device)
                for _ in range(2 if bench.is_tiny else _COPIES)
            ]
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
    """Return gemv tile, dot tile, and the limits between the paths, for one shape."""
    num_out, num_in = weights[0].shape
    gemv_times = _try(bench, weights, 1, list(_gemv_tiles(kind, num_out, num_in, bench.is_tiny)))
    gemv = min(gemv_times, key=lambda tile: gemv_times[tile])
    dot_times = _try(
        bench, weights, _DOT_ROWS, list(_dot_tiles(kind, num_out, num_in, bench.is_tiny))
    )
    dot = min(dot_times, key=lambda tile: dot_times[tile])
    max_gemv_rows = 1
    for rows in (2, 4):
        times = _try(bench, weights, rows, [gemv, dot])
        if times[gemv] > times[dot]:
            break
        max_gemv_rows = rows
    min_dense_rows = _NEVER_DENSE
    if kind[0] == "q":
        for rows in (64, 32):
            if _dense_us(bench, weights, rows) >= _try(bench, weights, rows, [dot])[dot]:
                break
            min_dense_rows = rows
    print(
        f"{kind} {num_out}x{num_in}: {tuple(gemv)} {gemv_times[gemv]:.1f} us, {tuple(dot)} "
        f"{dot_times[dot]:.1f} us, gemv to {max_gemv_rows}, dense from {min_dense_rows}",
        flush=True,
    )
    return [list(gemv), list(dot), [max_gemv_rows, min_dense_rows]]


def _gemv_tiles(kind: str, num_out: int, num_in: int, is_tiny: bool) -> Iterator[GemvTile]:
    yield default_plan(kind, num_out, num_in).gemv
    units = num_in // (32 if kind[0] == "b" else 128 // int(kind[1:]))
    if is_tiny:
        return
    # Larger and fewer programs read ahead over more steps; smaller and more of them fill the
    # multiprocessors evenly. Which wins depends on the shape.
    for block_n, num_warps, repeat in itertools.product((2, 4, 8, 16), (1, 2, 4), (1, 2, 3, 4, 8)):
        if block_n == 16 and (kind[0] == "q" or num_out < 8192):
            continue  # registers
        if repeat > 1 and (kind[0] == "b" or num_out < block_n * repeat * _MIN_PROGRAMS):
            continue
        if 32 * (num_warps // 2) < units:
            yield GemvTile(block_n, 32 * num_warps, num_warps, repeat)


def _dot_tiles(kind: str, num_out: int, num_in: int, is_tiny: bool) -> Iterator[DotTile]:
    yield default_plan(kind, num_out, num_in).dot
    unit = 32 if kind[0] == "b" else 128 // int(kind[1:])
    if is_tiny:
        return
    for block_n, block_k, split in itertools.product((32, 64, 128), (64, 128), (1, 2, 4, 8)):
        programs = -(-num_out // block_n) * split
        if kind[0] == "b" and (block_n == 32 or block_k == 64):
            continue
        if split == 1 or (100 <= programs <= 1200 and num_in // block_k >= 4 * split):
            yield DotTile(block_n, block_k // unit, split, 4, 3)


def _try(bench: Bench, weights: list[Any], num_rows: int, tiles: list[Any]) -> dict[Any, float]:
    """Return the microseconds of every tile that this GPU can run."""
    num_out, num_in = weights[0].shape
    x = torch.randn(num_rows, num_in, dtype=torch.bfloat16, device=bench.device)
    out = torch.empty(num_rows, num_out, dtype=torch.bfloat16, device=bench.device)
    graphs = {}
    for tile in dict.fromkeys(tiles):
        run = _call(x, out, itertools.cycle(weights), tile)
        try:
            graphs[tile] = captured(run, bench.device, len(weights))
        except Exception as error:  # too much shared memory, for instance
            print(f"{tile}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    times = bench.measure(graphs, len(weights))
    return {tile: value.p50_us for tile, value in times.items()}


def _call(x: Tensor, out: Tensor, weights: Iterator[Any], tile: Any) -> Callable[[], None]:  # noqa: ANN401
    def run() -> None:
        weight = next(weights)
        module = quant_matmul if hasattr(weight, "words") else bit_matmul
        if isinstance(tile, GemvTile):
            module.gemv(x, weight, None, out, tile)
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
