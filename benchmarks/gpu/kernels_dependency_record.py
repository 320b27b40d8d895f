"""The dependency record of a prefill: the section `dependency_record` of `bench_kernels.py`.

On a GPU the kernels against a pass of known work; with `--device cpu` the embedded model's own
pass, with and without the record.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import torch
from gpu.kernel_timer import Bench, Run, captured, figures
from gpu.kernels_slot_attention import print_sweep
from numpy.typing import NDArray
from torch import Tensor

from keyturn.engine.files.catalog import resolve
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import AttentionRecord, Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.kernels.attention import dependency as dependency_record
from keyturn.kernels.attention import reference as reference_attention

# A pass over the whole context, in bf16, that reaches this runs as fast as prefills do here.
PASS_FLOPS = 450e12
# (model, parameters, layers, heads, KV heads)
RECORDED = [
    ("DeepSeek-Coder 1.3B", 1.3e9, 24, 16, 16),
    ("DeepSeek-Coder 6.7B", 6.7e9, 32, 32, 32),
    ("Qwen2.5-Coder 7B", 7.1e9, 28, 28, 4),
]
NUM_RECORDED = 3
TARGET = "<= 0.05"
# On the CPU: the embedded model prefills so many tokens, in chunks as the engine does.
CPU_ROWS, CPU_CHUNK = 2000, 256
CPU_LAYERS, ONE_LAYER = frozenset({9, 14, 19}), frozenset({14})


def run(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure the record of a pass over a whole context; return figures and checks."""
    if bench.device.type == "cpu" and not bench.is_tiny:
        return _run_on_cpu(bench)
    models = [("tiny", 1e3, 4, 4, 2)] if bench.is_tiny else RECORDED
    rows, found, checks, sweeps = [], [], [], []
    for num_rows, model in itertools.product([40] if bench.is_tiny else [2048, 8192], models):
        name, parameters, layers, num_heads, num_kv_heads = model
        head_dim = 64 if bench.is_tiny else 128
        made = _pass(bench.device, num_rows, num_heads, num_kv_heads, head_dim)
        if bench.is_sweep:
            sweeps.append(_sweep_record(bench, f"{name}, {num_rows} rows", made))
            continue
        measured = bench.measure(
            {part: captured(run, bench.device) for part, run in _parts(made).items()}
        )
        # Matrix products, and the causal half of attention's two.
        flops = 2 * parameters * num_rows
        flops += 4 * num_rows**2 / 2 * num_heads * head_dim * layers
        pass_us = flops / PASS_FLOPS * 1e6
        record_us = NUM_RECORDED * measured["attention, given sums"].p50_us
        record_us += measured["largest entries"].p50_us
        found.append(
            {
                "model": name,
                "rows": num_rows,
                "heads": [num_heads, num_kv_heads, head_dim],
                "runs": {part: figures(times) for part, times in measured.items()},
                "record_us": record_us,
                "pass_us": pass_us,
            }
        )
        for part, times in measured.items():
            rows.append([name, num_rows, part, times.p50_us, times.p20_us, times.p80_us])
        what = f"dependency record of {NUM_RECORDED} layers: {name}, {num_rows} rows"
        checks.append(harness.check(what, record_us / pass_us, "of the pass", TARGET))
    if bench.is_sweep:
        return {"sweep": sweeps}, []
    harness.table(["model", "rows", "run", "p50 us", "p20", "p80"], rows)
    return {"shapes": found, "assumed_flops_per_s": PASS_FLOPS}, checks


@dataclass(frozen=True, slots=True)
class Pass:
    """What one layer of a pass leaves behind."""

    queries: Tensor
    keys: Tensor
    positions: Tensor
    sums: Tensor
    mean: Tensor


def _pass(
    device: torch.device, num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> Pass:
    queries = torch.randn(num_rows, num_heads, head_dim, dtype=torch.bfloat16, device=device)
    keys = torch.randn(num_kv_heads, num_rows, head_dim, dtype=torch.bfloat16, device=device)
    positions = torch.arange(num_rows, device=device)
    sums = dependency_record.log_sums(queries, keys, positions, positions)
    mean = torch.empty(num_rows, num_rows, device=device)
    dependency_record.record_dependencies(queries, keys, positions, positions, mean, sums=sums)
    return Pass(queries, keys, positions, sums, mean)


def _parts(made: Pass) -> dict[str, Run]:
    inputs = (made.queries, made.keys, made.positions, made.positions)

    def record(sums: Tensor | None) -> Run:
        return lambda: dependency_record.record_dependencies(*inputs, made.mean, sums=sums)

    return {
        "attention, given sums": record(made.sums),
        "attention, sums computed": record(None),
        "largest entries": lambda: dependency_record.largest_entries(made.mean),
        "largest entries, torch.topk": lambda: reference_attention.largest_entries(made.mean),
    }


def _sweep_record(bench: Bench, what: str, made: Pass) -> dict[str, Any]:
    in_use = dependency_record.default_tile(made.keys.shape[2], made.keys.itemsize)
    choices = itertools.product((64, 128), (64, 128), (4, 8), (2, 3, 4))
    tiles = [dependency_record.Tile(*choice) for choice in choices]
    inputs = (made.queries, made.keys, made.positions, made.positions, made.mean)
    runs: dict[str, Run] = {}
    for tile in [in_use] if bench.is_tiny else tiles:

        def record(tile: dependency_record.Tile = tile) -> None:
            dependency_record.record_dependencies(*inputs, sums=made.sums, tile=tile)

        try:
            runs[str(tuple(tile))] = captured(record, bench.device)
        except Exception as error:  # too much shared memory, for instance
            print(f"{what}: {tuple(tile)}: {type(error).__name__}")
    flops = made.mean.numel() * made.queries.shape[1] * made.queries.shape[2]  # the causal half
    shares = print_sweep(
        what, in_use, bench.measure(runs), lambda one: flops / one.p50_us / 1e6
    )  # TFLOP/s
    return {"shape": what, "tflops": shares}


# On the CPU


def _run_on_cpu(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Prefill with and without the record, in turns."""
    files = load_model(resolve("embedded"), torch.bfloat16)
    decoder = Decoder(files.config, files.tensors)
    cache = KVCache(decoder.config, CPU_ROWS, torch.bfloat16, bench.device)
    token_ids = np.random.default_rng(0).integers(decoder.config.vocab_size, size=CPU_ROWS)
    runs: dict[str, Callable[[], float]] = {
        "prefill": lambda: _prefill_ms(decoder, cache, token_ids, frozenset()),
        "prefill, 1 layer recorded": lambda: _prefill_ms(decoder, cache, token_ids, ONE_LAYER),
        "prefill, 3 layers recorded": lambda: _prefill_ms(decoder, cache, token_ids, CPU_LAYERS),
    }
    found = harness.alternate(runs, repeats=min(bench.repeats, 15), warm_up=2)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    bare = medians["prefill"]
    # Of neighbours in time, so that the machine's other work hits both.
    added = {
        name: float(np.median(np.divide(values, found["prefill"]))) - 1
        for name, values in found.items()
    }
    rows = [[name, ms, min(found[name]), added[name]] for name, ms in medians.items()]
    harness.table([f"{CPU_ROWS} tokens", "median ms", "min ms", "added"], rows)
    check = harness.check(
        f"dependency record of {len(CPU_LAYERS)} layers on the CPU",
        added["prefill, 3 layers recorded"],
        "of the pass",
        TARGET,
    )
    return {"rows": CPU_ROWS, "prefill_ms": bare, "median_ms": medians, "added": added}, [check]


def _prefill_ms(
    decoder: Decoder,
    cache: KVCache,
    token_ids: NDArray[np.int64],
    layers: frozenset[int],
) -> float:
    start = time.perf_counter()
    cache.clear()
    for first in range(0, CPU_ROWS, CPU_CHUNK):
        chunk = token_ids[first : first + CPU_CHUNK]
        slots = cache.append(chunk, np.arange(first, first + len(chunk)))
        record = AttentionRecord(layers, [*range(len(chunk))]) if layers else None
        decoder.forward(cache, slots, lambda: None, record)
        if record is not None:
            mean, *others = record.weights.values()
            for other in others:
                mean += other
            reference_attention.largest_entries(mean.mul_(1 / len(layers)))
    return (time.perf_counter() - start) * 1e3
