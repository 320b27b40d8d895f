"""Tries tiles for products with bf16 matrices, with what the step fuses, and writes the table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matmul_tuning
import torch
from decode_model import SHAPES
from kernel_timer import Bench, captured
from torch.nn import functional

from keyturn.engine.model_config import ModelConfig
from keyturn.kernels import dense_gemv
from keyturn.kernels.fusion import Fusion
from keyturn.kernels.matmul_measured import MEASURED
from keyturn.kernels.matmul_table import GemvTile, default_plan

_COPIED_BYTES = 128 << 20


def tune(bench: Bench, models: list[str], table: Path) -> None:
    """Fill the table's "d16" for this GPU, shape by shape; written after each model."""
    device = bench.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    gpu = next((name for name in ("H100", "H200", "A100") if name in gpu), gpu)
    measured: dict[str, Any] = {name: dict(kinds) for name, kinds in MEASURED.items()}
    entries = measured.setdefault(gpu, {}).setdefault(dense_gemv.KIND, {})
    for model in models:
        for shape, fusion, dtype in products(SHAPES[model], device):
            try:
                tile = _tune_one(bench, shape, fusion, dtype)
            except Exception as error:
                print(f"{shape}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
                continue
            plan = default_plan(dense_gemv.KIND, *shape)
            limits = [plan.max_gemv_rows, plan.max_mma_rows, plan.min_dense_rows]
            entries[f"{shape[0]}x{shape[1]}"] = [list(tile), list(plan.mma), list(plan.dot), limits]
        matmul_tuning.write(measured, table)


def products(
    config: ModelConfig, device: torch.device
) -> list[tuple[tuple[int, int], Fusion, torch.dtype]]:
    """Return every product of a step: shape, what is fused with it, and the result's dtype."""
    hidden, inner = config.hidden_size, config.intermediate_size
    width = config.num_heads * config.head_dim
    qkv = width + 2 * config.num_kv_heads * config.head_dim
    gain = torch.ones(hidden, dtype=torch.bfloat16, device=device)
    residual = torch.ones(1, hidden, dtype=torch.bfloat16, device=device)
    half, single = torch.bfloat16, torch.float32
    return [
        ((qkv, hidden), Fusion(gain, 1e-6), half),
        ((hidden, width), Fusion(residual=residual), half),
        ((2 * inner, hidden), Fusion(gain, 1e-6, gated=True), half),
        ((hidden, inner), Fusion(residual=residual), half),
        ((config.vocab_size, hidden), Fusion(gain, 1e-6), single),
    ]


def _tune_one(bench: Bench, shape: tuple[int, int], fusion: Fusion, dtype: torch.dtype) -> GemvTile:
    num_bytes = 2 * shape[0] * shape[1]
    count = 2 if bench.is_tiny else max(2, min(32, -(-_COPIED_BYTES // num_bytes)))
    weights = [
        torch.empty(shape, dtype=torch.bfloat16, device=bench.device).normal_()
        for _ in range(count)
    ]
    x = torch.randn(1, shape[1], device=bench.device).bfloat16()
    out = fusion.new_output(x, shape[0], dtype)

    def each(call: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        turn = itertools.cycle(weights)
        return captured(lambda: call(next(turn)), bench.device, count)

    runs: dict[Any, Callable[[], object]] = {}
    for tile in dict.fromkeys(_tiles(shape, bench.is_tiny)):
        try:
            runs[tile] = each(
                lambda weight, tile=tile: dense_gemv.gemv(x, weight, None, out, tile, fusion)
            )
        except Exception as error:  # too many registers, for instance
            print(f"{tile}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
    times = bench.measure(runs | {"cublas": each(lambda w: functional.linear(x, w))}, count)
    found = {tile: times[tile].p50_us for tile in runs}
    ranked = sorted(found, key=lambda tile: found[tile])
    best = ranked[0]
    share = num_bytes / (found[best] * 1e-6) / bench.copy_bytes_per_s
    default = default_plan(dense_gemv.KIND, *shape).gemv
    print(
        f"{shape[0]}x{shape[1]}: {tuple(best)} {found[best]:.1f} us, {share:.0%} of copy; "
        f"default {tuple(default)} {found.get(default, float('nan')):.1f}, "
        f"cuBLAS {times['cublas'].p50_us:.1f}; then "
        + ", ".join(f"{tuple(tile)} {found[tile]:.1f}" for tile in ranked[1:4]),
        flush=True,
    )
    return best


def _tiles(shape: tuple[int, int], is_tiny: bool) -> list[GemvTile]:
    tiles = [default_plan(dense_gemv.KIND, *shape).gemv]
    if is_tiny:
        return tiles
    units = shape[1] // 8
    sizes = (2, 4) if shape[0] < 3000 else (2, 4, 8) if shape[0] < 8192 else (4, 8, 16)
    for block_n, num_warps, times in itertools.product(sizes, (1, 2, 4), (1, 2, 4)):
        block_u = 32 * num_warps * times
        # 32 to 128 bytes a thread and step: with less the warps wait, with more registers run out.
        if 2 <= block_n * times <= 8 and block_u < 2 * units and num_warps * times >= 2:
            tiles.append(GemvTile(block_n, block_u, num_warps, 1))
    return tiles
