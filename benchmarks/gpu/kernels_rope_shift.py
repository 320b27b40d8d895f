"""Turning a whole cache: the section `rope_shift` of `bench_kernels.py`.

Every slot moves by the same distance, as behind an edit near the top of a file.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import torch
from gpu.kernel_timer import Bench, Run, captured, figures, relative_error
from torch import Tensor

from keyturn.kernels.rotary import launch as rope_shift
from keyturn.kernels.rotary import reference

# (model, layers, KV heads); all have heads of 128 and half-split pairs.
MODELS = [
    ("DeepSeek-Coder 1.3B", 24, 16),
    ("DeepSeek-Coder 6.7B", 32, 32),
    ("Qwen2.5-Coder 1.5B", 28, 2),
    ("Qwen2.5-Coder 7B", 28, 4),
]
NUM_SLOTS = [8192, 32_768]
TINY = [("tiny", 2, 3, 17, 16)]
OURS = "rope_shift"
TARGET = ">= 0.9"
# What one measurement moves at least, in as many calls as it takes. Each call moves several times
# what the second-level cache holds, so the next finds nothing there.
_MEASURED_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache and the angles of its slots' new positions.

    Attributes:
        unrotated: (num_layers, num_kv_heads, num_slots, head_dim).
        rotated: like `unrotated`.
        slots: (num_slots,) int64, in order.
        cos: (num_slots, head_dim / 2) float32.
        sin: like `cos`.
    """

    unrotated: Tensor
    rotated: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to turn a cache.

    Attributes:
        run: what is timed.
        output: returns the turned keys after a run, in the cache's order; None: they are none.
        prepare: called before the run whose error is measured; poisons the output.
        is_interleaved: which pairs it turns.
    """

    run: Run
    output: Callable[[], Tensor] | None
    prepare: Run
    is_interleaved: bool = False


def run(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure all shapes; print a table; return figures and checks."""
    shapes = [(*model, slots, 128) for slots in NUM_SLOTS for model in MODELS]
    shapes = TINY if bench.is_tiny else shapes
    if bench.is_sweep:
        return {"sweep": [_sweep(bench, *shape) for shape in shapes]}, []
    rows, found, checks = [], [], []
    for model, num_layers, num_kv_heads, num_slots, head_dim in shapes:
        cache = new_cache(bench.device, num_layers, num_kv_heads, num_slots, head_dim)
        measured, left_out = measure(bench, cache)
        found.append(
            {
                "model": model,
                "shape": [*cache.unrotated.shape],
                "dtype": str(cache.unrotated.dtype).removeprefix("torch."),
                "runs": measured,
                "left_out": left_out,
            }
        )
        for name, one in measured.items():
            times = (one["p50_us"], one["p20_us"], one["p80_us"])
            error = None if one["error"] is None else f"{one['error']:.1e}"
            rows.append([model, num_slots, name, *times, one["share"], error])
        share = measured[OURS]["share"]
        name = f"{OURS}: {model}, {num_slots} slots"
        checks.append(harness.check(name, share, "of copy bandwidth", TARGET))
        for name, why in left_out.items():
            print(f"{model}, {num_slots} slots: no {name}: {why}")
        del cache
        gc.collect()  # graphs hold memory, and the largest cache needs most of it
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    header = ["model", "slots", "run", "p50 us", "p20", "p80", "of copy bandwidth", "error"]
    harness.table(header, rows)
    return {"shapes": found}, checks


def new_cache(
    device: torch.device, num_layers: int, num_kv_heads: int, num_slots: int, head_dim: int
) -> Cache:
    """Return a cache of random keys, all of them moved on by 37 positions."""
    shape = (num_layers, num_kv_heads, num_slots, head_dim)
    unrotated = torch.randn(shape, dtype=torch.bfloat16, device=device)
    inverse = 1e4 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = (torch.arange(num_slots, dtype=torch.float64) + 37)[:, None] * inverse
    return Cache(
        unrotated,
        torch.empty_like(unrotated),
        torch.arange(num_slots, device=device),
        turned.cos().float().to(device),
        turned.sin().float().to(device),
    )


def measure(bench: Bench, cache: Cache) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each candidate's figures, and why others could not run.

    Every rival is measured in turns with ours: one that fails takes no other's figures along.
    """
    num_bytes = 2 * cache.unrotated.numel() * cache.unrotated.itemsize
    calls = 1 if bench.is_tiny else max(1, _MEASURED_BYTES // num_bytes)
    errors: dict[str, float | None] = {}
    left_out: dict[str, str] = {}

    def capture(name: str, make: Callable[[Cache], Candidate]) -> Run:
        candidate = make(cache)
        run = captured(candidate.run, bench.device, calls)
        candidate.prepare()
        candidate.run()
        errors[name] = error_of(candidate, cache)
        return run

    ours = {name: capture(name, make) for name, make in _OURS.items()}
    times = bench.measure(ours, calls)
    for name, make in _RIVALS.items():
        try:
            runs = {OURS: ours[OURS], name: capture(name, make)}
            times[name] = bench.measure(runs, calls)[name]
        except Exception as error:  # a rival that is not there or does not run is no failure
            first = next(iter(str(error).splitlines()), "")
            left_out[name] = f"{type(error).__name__}: {first}"
        gc.collect()
    measured = {
        name: figures(one, share=bench.share(num_bytes, one), error=errors[name])
        for name, one in times.items()
    }
    return measured, left_out


def error_of(candidate: Candidate, cache: Cache) -> float | None:
    """Return the relative error, layer by layer: float64 copies of the whole do not fit."""
    if candidate.output is None:
        return None
    found = candidate.output()
    off = norm = 0.0
    for layer, keys in enumerate(cache.unrotated):
        exact = reference_in_float64(keys, cache.cos, cache.sin, candidate.is_interleaved)
        this = exact.norm().item()
        off += (relative_error(found[layer], exact) * this) ** 2
        norm += this**2
    return (off / norm) ** 0.5


def reference_in_float64(keys: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn (heads, slots, head_dim) keys in float64."""
    half = cos.shape[-1]
    pairs = (
        (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    )
    first, second = (keys[..., part].double() for part in pairs)
    out = torch.empty_like(keys, dtype=torch.float64)
    out[..., pairs[0]] = first * cos - second * sin
    out[..., pairs[1]] = second * cos + first * sin
    return out


def _into(cache: Cache, turn: Run, is_interleaved: bool = False) -> Candidate:
    """Return a candidate that writes into the cache, poisoned before the run that is checked."""
    nan = float("nan")
    return Candidate(turn, lambda: cache.rotated, lambda: cache.rotated.fill_(nan), is_interleaved)


def _shift(cache: Cache, order: Tensor, interleaved: bool) -> None:
    """Turn slots in some order, each to the position of its own number."""
    angles = (cache.cos, cache.sin, interleaved)
    rope_shift.rope_shift(cache.unrotated, cache.rotated, order, order, *angles)


def _ours(cache: Cache) -> Candidate:
    return _into(cache, lambda: _shift(cache, cache.slots, False))


def _ours_interleaved(cache: Cache) -> Candidate:
    return _into(cache, lambda: _shift(cache, cache.slots, True), is_interleaved=True)


def _ours_shuffled(cache: Cache) -> Candidate:
    """Rows lie in any order after many edits; here in the worst one."""
    order = torch.randperm(len(cache.slots), device=cache.slots.device)
    return _into(cache, lambda: _shift(cache, order, False))


def eager(cache: Cache) -> Candidate:
    """Return the turn in torch's own operations."""

    # All slots are a slice, so torch need not gather; layer by layer, or float32 would not fit.
    def turn() -> None:
        for keys, out in zip(cache.unrotated, cache.rotated, strict=True):
            out.copy_(reference.apply_rotary(keys, cache.cos, cache.sin, False))

    return _into(cache, turn)


def _compiled(cache: Cache) -> Candidate:
    if cache.unrotated.device.type != "cuda":
        raise NotImplementedError("measured on CUDA only")
    torch.compiler.reset()  # or the next shape would be compiled for any shape

    def turn(unrotated: Tensor, rotated: Tensor, cos: Tensor, sin: Tensor) -> None:
        rotated.copy_(reference.apply_rotary(unrotated, cos, sin, False))

    fused = torch.compile(turn, dynamic=False)
    return _into(cache, lambda: fused(cache.unrotated, cache.rotated, cache.cos, cache.sin))


def _check_offsets(cache: Cache) -> None:
    if cache.unrotated.numel() >= 2**31:
        raise NotImplementedError("its offsets have 32 bits and would point outside of the cache")


def _flash_attn(cache: Cache) -> Candidate:
    _check_offsets(cache)
    from flash_attn.ops.triton.rotary import (  # pyright: ignore[reportMissingImports]
        apply_rotary,
    )

    # It wants (batch, positions, heads, head_dim), by strides, and angles in the keys' dtype.
    keys = cache.unrotated.transpose(1, 2)
    cos, sin = cache.cos.to(keys.dtype), cache.sin.to(keys.dtype)
    last: list[Tensor] = []

    def turn() -> None:
        last[:] = [apply_rotary(keys, cos, sin, interleaved=False)]

    return Candidate(turn, lambda: last[0].transpose(1, 2), last.clear)


def _liger(cache: Cache) -> Candidate:
    _check_offsets(cache)
    from liger_kernel.ops.rope import (  # pyright: ignore[reportMissingImports]
        rope_forward,
    )

    # In place, every head of a position side by side in memory, in two tensors: half the heads are
    # its queries, half its keys.
    source = cache.unrotated.tensor_split(2, 1)
    halves = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in source]
    cos, sin = (torch.cat([part, part], -1)[None] for part in (cache.cos, cache.sin))

    def reset() -> None:
        for half, part in zip(halves, source, strict=True):
            half.copy_(part)

    return Candidate(
        lambda: rope_forward(*halves, cos, sin), lambda: torch.cat(halves, 1), prepare=reset
    )


def _copy(cache: Cache) -> Candidate:
    return Candidate(lambda: cache.rotated.copy_(cache.unrotated), None, lambda: None)


_OURS: dict[str, Callable[[Cache], Candidate]] = {
    "copy of the same size": _copy,
    OURS: _ours,
    f"{OURS}, interleaved": _ours_interleaved,
    f"{OURS}, slots shuffled": _ours_shuffled,
}
_RIVALS: dict[str, Callable[[Cache], Candidate]] = {
    "eager torch": eager,
    "torch.compile": _compiled,
    "flash-attn": _flash_attn,
    "Liger": _liger,
}


def _sweep(
    bench: Bench, model: str, num_layers: int, num_kv_heads: int, num_slots: int, head_dim: int
) -> dict[str, Any]:
    """Print and return every tile's share of the copy bandwidth, the best first."""
    cache = new_cache(bench.device, num_layers, num_kv_heads, num_slots, head_dim)
    num_bytes = 2 * cache.unrotated.numel() * cache.unrotated.itemsize
    calls = 1 if bench.is_tiny else max(1, _MEASURED_BYTES // num_bytes)
    sizes, heads, warps = (4096, 8192, 16_384), (1, 2, 4, 8, 16), (2, 4, 8)
    tiles = [rope_shift.Tile(*tile) for tile in itertools.product(sizes, heads, warps)]
    runs: dict[str, Run] = {}
    for tile in tiles[:2] if bench.is_tiny else tiles:

        def turn(tile: rope_shift.Tile = tile) -> None:
            keys = (cache.unrotated, cache.rotated)
            rope_shift.turn(*keys, cache.slots, cache.slots, cache.cos, cache.sin, False, tile)

        runs[str(tuple(tile))] = captured(turn, bench.device, calls)
    times = bench.measure(runs, calls)
    best = sorted(times, key=lambda name: times[name].p50_us)
    print(f"{model}, {num_slots} slots; the tile in use is {tuple(rope_shift.TURN_TILE)}")
    header = ["tile", "p50 us", "p20", "p80", "of copy bandwidth"]
    shares = {name: bench.share(num_bytes, times[name]) for name in best}
    rows = [
        [name, times[name].p50_us, times[name].p20_us, times[name].p80_us, shares[name]]
        for name in best
    ]
    harness.table(header, rows)
    return {"model": model, "num_slots": num_slots, "shares": shares}
