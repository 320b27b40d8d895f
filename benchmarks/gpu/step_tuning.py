"""Tries tiles for a decode step's products, with what is fused with them, and writes the table.

What a product is fused with changes which tile is best: a norm costs each program as much, however
few output features it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu import matmul_rivals, matmul_tuning
from gpu.decode_model import PRECISIONS, SHAPES, random_blocks
from gpu.kernel_timer import Bench, captured
from torch.nn import functional

from keyturn.engine.model.config import ModelConfig
from keyturn.kernels.matmul import dense as dense_gemv
from keyturn.kernels.matmul import quant as quant_matmul
from keyturn.kernels.matmul.fusion import Fusion
from keyturn.kernels.matmul.measured import MEASURED
from keyturn.kernels.matmul.table import GemvTile, choose_plan, default_plan
from keyturn.kernels.weights.packed import pack_gguf

Product = tuple[tuple[int, int], Fusion, torch.dtype]


def tune(bench: Bench, models: list[str], precisions: list[str], table: Path) -> None:
    """Fill the gemv tiles of the table for this GPU; written after each model and precision."""
    device = bench.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    gpu = next((name for name in ("H100", "H200", "A100") if name in gpu), gpu)
    measured: dict[str, Any] = {name: dict(kinds) for name, kinds in MEASURED.items()}
    for model, precision in itertools.product(models, precisions):
        kind = dense_gemv.KIND if PRECISIONS[precision] is None else precision
        entries = measured.setdefault(gpu, {}).setdefault(kind, {})
        for product in products(SHAPES[model], device):
            (num_out, num_in) = shape = product[0]
            try:
                tile = _tune_one(bench, precision, kind, product)
            except Exception as error:
                print(f"{shape}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
                continue
            name, plan = f"{num_out}x{num_in}", choose_plan(gpu, kind, num_out, num_in)
            limits = [plan.max_gemv_rows, plan.max_mma_rows, plan.min_dense_rows]
            others = entries.get(name, [[], list(plan.mma), list(plan.dot), limits])[1:]
            entries[name] = [list(tile), *others]
        matmul_tuning.write(measured, table)


def products(config: ModelConfig, device: torch.device) -> list[Product]:
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


def _tune_one(bench: Bench, precision: str, kind: str, product: Product) -> GemvTile:
    (num_out, num_in), fusion, dtype = product
    bits = {"bf16": 16, "q8": 8, "q4": 4}[precision]
    num_bytes = num_out * num_in * bits // 8
    count = matmul_rivals.num_copies(num_bytes, bench.is_tiny)
    weights = [_random_weight(num_out, num_in, precision, bench.device) for _ in range(count)]
    calls = count if bench.is_tiny else max(count, matmul_tuning.MIN_CALLS)
    x = torch.randn(1, num_in, device=bench.device).bfloat16()
    out = fusion.new_output(x, num_out, dtype)
    module = dense_gemv if kind == dense_gemv.KIND else quant_matmul

    def each(call: Callable[[Any], object]) -> Callable[[], object]:
        turn = itertools.cycle(weights)
        return captured(lambda: call(next(turn)), bench.device, calls)

    runs: dict[Any, Callable[[], object]] = {}
    for tile in dict.fromkeys(_tiles(kind, num_out, num_in, bench.is_tiny)):
        try:
            runs[tile] = each(
                lambda weight, tile=tile: module.gemv(x, weight, None, out, tile, fusion)
            )
        except Exception as error:  # too many registers, for instance
            print(f"{tile}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
    rivals = {"cuBLAS": each(lambda w: functional.linear(x, w))} if precision == "bf16" else {}
    times = {name: one.p50_us for name, one in bench.measure(runs | rivals, calls).items()}
    ranked = sorted(runs, key=lambda tile: times[tile])
    share = num_bytes / (times[ranked[0]] * 1e-6) / bench.copy_bytes_per_s
    told = [*ranked[:4], default_plan(kind, num_out, num_in).gemv, *rivals]
    print(
        f"{precision} {num_out}x{num_in}: {share:.0%} of copy; "
        + ", ".join(
            f"{name if name in rivals else tuple(name)} {times[name]:.1f}" for name in told
        ),
        flush=True,
    )
    return ranked[0]


def _random_weight(num_out: int, num_in: int, precision: str, device: torch.device) -> Any:  # noqa: ANN401
    kind = PRECISIONS[precision]
    if kind:
        return pack_gguf(random_blocks((num_out, num_in), kind, device))
    return torch.empty(num_out, num_in, dtype=torch.bfloat16, device=device).normal_()


def _tiles(kind: str, num_out: int, num_in: int, is_tiny: bool) -> Iterator[GemvTile]:
    if kind != dense_gemv.KIND:
        yield from matmul_tuning.gemv_tiles(kind, num_out, num_in, is_tiny)
        return
    yield default_plan(kind, num_out, num_in).gemv
    if is_tiny:
        return
    units = num_in // dense_gemv.UNIT
    sizes = (2, 4) if num_out < 3000 else (2, 4, 8) if num_out < 8192 else (4, 8, 16)
    for block_n, num_warps, times in itertools.product(sizes, (1, 2, 4), (1, 2, 4)):
        block_u = 32 * num_warps * times
        # 32 to 128 bytes a thread and step: with less the warps wait, with more registers run out.
        if 2 <= block_n * times <= 8 and block_u < 2 * units and num_warps * times >= 2:
            yield GemvTile(block_n, block_u, num_warps, 1)
