"""Decode steps on a GPU against the limit of its copy bandwidth, and against transformers.

Qwen2.5-Coder shapes with random weights, one row, context 2,048, inside a CUDA graph. With
TRITON_INTERPRET=1 and KEYTURN_KERNELS=triton, `--tiny --device cpu` tests the script. `--tune`
tries tiles of the step's products instead and writes `kernels/matmul/measured.py`.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from gpu import decode_model, decode_rival, matmul_tuning, step_tuning
from gpu.kernel_timer import Bench, captured, copy_bandwidth, relative_error

from keyturn.engine.model.captured_pass import DecodeGraph
from keyturn.engine.model.decoder import AttentionRecord, Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.kernels import dispatch
from keyturn.kernels.matmul.fusion import CacheRows, Fusion

MODELS = ("1.5b", "7b")
CONTEXT = 2048
# Of the limit in bf16; tokens per second in 4 bits over those in bf16.
TARGETS = {"1.5b": (0.60, 1.6), "7b": (0.72, 2.0)}
_LOOP_STEPS = 32


def main() -> None:
    """Measure every model and precision, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    precisions = [*decode_model.PRECISIONS]
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--rival", metavar="MODE", help="torch.compile's mode: reduce-overhead")
    parser.add_argument("--parts", action="store_true", help="time each launch of a layer too")
    parser.add_argument("--tune", action="store_true", help="try tiles and write the table")
    parser.add_argument("--table", type=Path, default=matmul_tuning.TABLE)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a shape that only tests the script")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    parser.set_defaults(model=None)
    args = parser.parse_args()
    if args.save and args.tiny:
        parser.error("--tiny gives no figures to --save")
    if args.tiny:
        args.models, args.context = ["tiny"], 16
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device, args.repeats, args.tiny)
        print(f"device copy, bytes read plus written: {bandwidth / 1e12:.2f} TB/s", flush=True)
        bench = Bench(device, args.repeats, args.tiny, args.tune, bandwidth)
        if args.tune:
            step_tuning.tune(bench, args.models, args.precisions, args.table)
            return
        found = [
            one
            for model in args.models
            for precision in args.precisions
            if (one := _guarded(lambda m=model, p=precision: _measure(bench, args, m, p)))
        ]
    if args.rival:
        for model in args.models:
            found += _guarded(lambda m=model: [_rival(args, m, device, bandwidth)]) or []
    header = ["model", "precision", "step us", "tokens/s", "of limit", "loop tokens/s", "error"]
    columns = ("model", "precision", "step_us", "tokens_per_s", "share", "loop_tokens_per_s")
    harness.table(header, [[*map(one.get, columns), one.get("error")] for one in found])
    figures = {"copy_bytes_per_s": bandwidth, "context": args.context, "runs": found}
    harness.finish("decode_gpu", args, figures, _checks(found))


def _guarded(run: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what a section gives; one that fails is shown and does not end the others."""
    try:
        return run()
    except Exception:
        traceback.print_exc()
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _checks(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    runs = {(one["model"], one["precision"]): one for one in found}
    checks = []
    for model, (share, factor) in TARGETS.items():
        bf16, q4 = runs.get((model, "bf16")), runs.get((model, "q4"))
        rival = runs.get((model, "transformers"))
        if bf16:
            checks.append(harness.check(f"{model} bf16", bf16["share"], "of limit", f">= {share}"))
        if bf16 and q4:
            times = bf16["step_us"] / q4["step_us"]
            checks.append(harness.check(f"{model} q4 over bf16", times, "times", f">= {factor}"))
        if bf16 and rival:
            times = rival["step_us"] / bf16["step_us"]
            checks.append(harness.check(f"{model} over transformers", times, "times", ">= 1"))
    errors = [one["error"] for one in found if "error" in one]
    worst = max(errors, key=lambda error: error if error == error else 1e9, default=None)
    return [*checks, harness.check("logits against the forward pass", worst, "norm", "<= 0.04")]


def _measure(bench: Bench, args: Any, model: str, precision: str) -> dict[str, Any]:  # noqa: ANN401
    start = time.perf_counter()
    decoder = decode_model.random_decoder(decode_model.SHAPES[model], precision, bench.device)
    cache = decode_model.full_cache(decoder, args.context)
    graph = DecodeGraph(decoder.stack, cache, dispatch.choose(bench.device))
    slot = args.context - 1
    graph.step(slot)
    print(f"{model} {precision}: ready in {time.perf_counter() - start:.1f} s", flush=True)
    num_bytes = decode_model.num_weight_bytes(decoder)
    num_bytes += decode_model.num_cache_bytes(decoder, args.context)
    step_us = _step_us(bench, graph, slot)
    found = {"model": model, "precision": precision, "bytes": num_bytes, "step_us": step_us}
    found |= {
        "tokens_per_s": 1e6 / step_us,
        "share": num_bytes / bench.copy_bytes_per_s / (step_us * 1e-6),
    }
    if args.parts:
        found["parts"] = _guarded(lambda: _parts(bench, decoder, cache))
    found["error"] = _guarded(lambda: _error(bench, decoder, cache, graph))
    found["loop_tokens_per_s"] = _guarded(lambda: loop(bench, cache, graph))
    return {name: value for name, value in found.items() if value is not None}


def _step_us(bench: Bench, graph: DecodeGraph, slot: int) -> float:
    """Return the median time of a step, the copy of its inputs included, no logits read."""
    calls = 1 if bench.is_tiny else 5

    def run() -> None:
        for _ in range(calls):
            graph.step(slot)

    return _times_us(bench, {"step": run}, calls)["step"]


def _times_us(
    bench: Bench, runs: dict[str, Callable[[], object]], calls: int = 1
) -> dict[str, float]:
    """Return median microseconds of a call; a tiny run is made once, the interpreter is slow."""
    if not bench.is_tiny:
        return {name: times.p50_us for name, times in bench.measure(runs, calls).items()}
    found = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        found[name] = (time.perf_counter() - start) * 1e6 / calls
    return found


def loop(bench: Bench, cache: KVCache, graph: DecodeGraph) -> float:
    """Return tokens per second of greedy decoding, every token read on the host."""
    count = 2 if bench.is_tiny else _LOOP_STEPS
    token_id = 1
    start = time.perf_counter()
    for _ in range(count):
        position = cache.positions.max() + 1
        (slot,) = cache.append(np.array([token_id]), np.array([position]))
        token_id = int(graph.step(slot).argmax())
    return count / (time.perf_counter() - start)


def _error(bench: Bench, decoder: Decoder, cache: KVCache, graph: DecodeGraph) -> float:
    """Return how far logits are from the forward pass's, at worst, while the cache is patched."""

    def compared(slot: int) -> float:
        # Asked for a record, an empty one here, the pass is not captured.
        record = AttentionRecord(frozenset(), [])
        hidden = decoder.forward(cache, np.array([slot]), lambda: None, record)
        expected = decoder.logits(hidden)[0].double()
        return relative_error(graph.step(slot), expected)

    def append() -> int:
        position = cache.positions.max() + 1
        return int(cache.append(np.array([7]), np.array([position]))[0])

    errors = [compared(int(cache.positions.argmax())), compared(append())]
    cache.remove(np.arange(2, 5))  # the last rows move there
    errors.append(compared(append()))
    order = cache.by_position()
    cache.turn(order, np.arange(len(order)))
    errors += [compared(append()), compared(append())]
    print("errors while the cache changes: " + ", ".join(f"{error:.2g}" for error in errors))
    return max(errors, key=lambda error: error if error == error else 1e9)


def _parts(bench: Bench, decoder: Decoder, cache: KVCache) -> dict[str, float]:
    """Time every launch of a layer, each over all layers' weights in one graph."""
    config, kernels = decoder.config, dispatch.choose(bench.device)
    device, eps = bench.device, config.norm_eps

    def row(width: int) -> torch.Tensor:
        return torch.randn(1, width, device=device).bfloat16()

    hidden, gated = row(config.hidden_size), row(config.intermediate_size)
    queries = row(config.num_heads * config.head_dim).view(1, config.num_heads, -1)
    slot = torch.full((1,), cache.num_rows - 1, dtype=torch.int64, device=device)
    used = torch.full((1,), cache.num_rows, dtype=torch.int32, device=device)
    table = cache.table

    def product(x: torch.Tensor, linear: Any, fusion: Fusion) -> None:  # noqa: ANN401
        kernels.fused_linear(x, linear.weight, linear.bias, fusion)

    def qkv(layer: Any, number: int) -> None:  # noqa: ANN401
        unrotated, keys, values = (part[number] for part in cache.storage)
        rows = CacheRows(
            unrotated, keys, values, slot, slot, table.cos, table.sin, table.interleaved
        )
        product(hidden, layer.qkv, Fusion(layer.attention_norm.weight, eps, cache=rows))

    calls: dict[str, Callable[[Any, int], object]] = {
        "qkv": qkv,
        "attention": lambda _, n: kernels.attend_slots(
            queries, cache._keys[n], cache._values[n], used
        ),
        "output": lambda one, _: product(queries.view(1, -1), one.output, Fusion(residual=hidden)),
        "gate_up": lambda one, _: product(
            hidden, one.mlp.gate_up, Fusion(one.mlp_norm.weight, eps, True)
        ),
        "down": lambda one, _: product(gated, one.mlp.down, Fusion(residual=hidden)),
    }

    def over_layers(call: Callable[[Any, int], object]) -> Callable[[], None]:
        def run() -> None:
            for number, layer in enumerate(decoder.stack.layers):
                call(layer, number)

        return run

    runs = {name: captured(over_layers(call), device) for name, call in calls.items()}
    found = _times_us(bench, runs, config.num_layers)
    head: Any = decoder.stack.head
    fusion = Fusion(decoder.stack.norm.weight, eps)

    def last() -> None:
        kernels.fused_linear(hidden, head.weight, head.bias, fusion, out_dtype=torch.float32)

    found |= _times_us(bench, {"head": captured(last, device)})
    print("us a launch: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def _rival(
    args: Any,  # noqa: ANN401
    model: str,
    device: torch.device,
    bandwidth: float,
) -> dict[str, Any]:
    """Measure transformers, after ours has given its memory back."""
    shape = decode_model.SHAPES[model]
    step_us = decode_rival.measure(shape, args.context, args.rival, args.repeats, device)
    found = {"model": model, "precision": "transformers", "mode": args.rival, "step_us": step_us}
    return {**found, "tokens_per_s": 1e6 / step_us}


if __name__ == "__main__":
    main()
