"""Attention over slots while decoding: the section `slot_attention` of `bench_kernels.py`.

One row, or a few, over one layer's cache, whose length is read on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import torch
from gpu.kernel_timer import Bench, Run, Times, captured, figures, relative_error
from torch import Tensor
from torch.nn import functional

from keyturn.kernels.attention import reference as reference_attention
from keyturn.kernels.attention.slots import attend_slots
from keyturn.kernels.attention.slots_tiles import Tile, default_path, default_tile
from keyturn.kernels.attention.slots_workspace import Workspace, workspace_for

# (model, query heads, KV heads); all have heads of 128.
MODELS = [
    ("DeepSeek-Coder 1.3B", 16, 16),
    ("DeepSeek-Coder 6.7B", 32, 32),
    ("Qwen2.5-Coder 1.5B", 12, 2),
    ("Qwen2.5-Coder 7B", 28, 4),
]
# (slots in use, capacity)
LENGTHS = [(2048, 8192), (8192, 8192), (30_000, 32_768)]
TINY_MODELS = [("tiny", 2, 2), ("tiny, grouped", 6, 2)]
TINY_LENGTHS = [(40, 64)]
# Of a step that decodes, of one that checks guesses, of an edit's stale rows.
ROWS = [1, 4, 16, 60]
TINY_ROWS = [1, 17]
Positions = tuple[Tensor | None, Tensor | None]
OURS = "slot_attention"
# What --sweep tries, each with each, and for the path "wide" only where an edit is typical.
TILES = {"num_bytes": (4096, 8192, 16_384), "num_warps": (2, 4, 8), "num_stages": (1, 2, 3, 4)}
TILES |= {"programs": (1, 2, 4, 8)}
WIDE_TILES = {"num_bytes": (8192, 16_384), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
WIDE_TILES |= {"programs": (1, 2, 3), "num_rows": (32, 64)}
WIDE_SLOTS = 8192
# Of models without groups: they are bound by memory, and have enough of it to reach its pace.
TARGET, TARGET_SLOTS = ">= 0.8", range(2048, 8193)
# Each call reads another layer's cache, and all together more than any second-level cache holds.
_MIN_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Layers:
    """Caches of as many layers as it takes to leave nothing in the second-level cache.

    Attributes:
        queries: (rows, heads, head_dim).
        keys: (layers, KV heads, capacity, head_dim).
        values: like `keys`.
        num_slots: in use.
        count: the same, on the device.
        row_positions: (rows,), the last `rows` positions.
        slot_positions: (capacity,) in random order.
        out: where our kernels write, like `queries`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    num_slots: int
    count: Tensor
    row_positions: Tensor
    slot_positions: Tensor
    out: Tensor

    def used(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values, without the slots that are free."""
        return self.keys[layer, :, : self.num_slots], self.values[layer, :, : self.num_slots]


def run(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure all shapes; print a table; return figures and checks."""
    models, lengths = (TINY_MODELS, TINY_LENGTHS) if bench.is_tiny else (MODELS, LENGTHS)
    shapes = itertools.product(lengths, models, TINY_ROWS if bench.is_tiny else ROWS)
    rows, found, checks, sweeps = [], [], [], []
    for (num_slots, capacity), (model, num_heads, num_kv_heads), num_rows in shapes:
        path = default_path(num_rows, num_heads // num_kv_heads, 2)
        is_edit = bench.is_tiny or (num_rows, num_slots) == (ROWS[-1], WIDE_SLOTS)
        if bench.is_sweep and path == "wide" and not is_edit:
            continue
        head_dim = 64 if bench.is_tiny else 128
        made = _layers(bench, num_rows, num_heads, num_kv_heads, head_dim, num_slots, capacity)
        what = f"{model}, {num_slots} slots, {num_rows} rows"
        if bench.is_sweep:
            sweeps.append(_sweep(bench, what, made, path))
            continue
        measured, left_out = _measure(bench, made)
        found.append(
            {
                "model": model,
                "heads": [num_heads, num_kv_heads, head_dim],
                "rows": num_rows,
                "num_slots": num_slots,
                "capacity": capacity,
                "runs": measured,
                "left_out": left_out,
            }
        )
        for name, one in measured.items():
            times = (one["p50_us"], one["p20_us"], one["p80_us"])
            rows.append([model, num_slots, num_rows, name, *times, one["share"], one["error"]])
        if num_rows == 1 and num_heads == num_kv_heads and num_slots in TARGET_SLOTS:
            share = measured[OURS]["share"]
            checks.append(harness.check(f"{OURS}: {what}", share, "of copy bandwidth", TARGET))
        for name, why in left_out.items():
            print(f"{what}: no {name}: {why}")
    if bench.is_sweep:
        return {"sweep": sweeps}, []
    header = ["model", "slots", "rows", "run", "p50 us", "p20", "p80", "of copy bandwidth", "error"]
    harness.table(header, rows)
    return {"shapes": found}, checks


def _layers(
    bench: Bench,
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_slots: int,
    capacity: int,
) -> Layers:
    device = bench.device
    num_bytes = 2 * num_kv_heads * num_slots * head_dim * 2
    layers = 2 if bench.is_tiny else -(-_MIN_BYTES // num_bytes)
    shape = (layers, num_kv_heads, capacity, head_dim)
    queries = torch.randn(num_rows, num_heads, head_dim, dtype=torch.bfloat16, device=device)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    positions = torch.arange(capacity, device=device)
    positions[:num_slots] = torch.randperm(num_slots, device=device)
    return Layers(
        queries,
        keys,
        values,
        num_slots,
        torch.full((1,), num_slots, dtype=torch.int32, device=device),
        torch.arange(num_slots - num_rows, num_slots, device=device),
        positions,
        torch.empty_like(queries),
    )


def _measure(bench: Bench, made: Layers) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each candidate's figures, and why others could not run."""
    num_bytes = 2 * made.keys[0, :, : made.num_slots].numel() * made.keys.itemsize
    calls = len(made.keys)
    positions = (made.row_positions, made.slot_positions)
    exact = reference_attention.attend_slots(
        made.queries.double(), made.keys[0].double(), made.values[0].double(), made.num_slots,
        *positions,
    )  # fmt: skip
    runs: dict[str, Run] = {}
    errors: dict[str, float | None] = {}
    left_out: dict[str, str] = {}
    for name, attend in _candidates(made).items():
        try:
            made.out.fill_(float("nan"))
            found = attend(0)
            errors[name] = None if found is None else relative_error(found, exact)
            runs[name] = captured(_every_layer(attend, calls), bench.device)
        except Exception as error:  # a rival that does not run is no failure
            if name.startswith(OURS):
                raise
            first = next(iter(str(error).splitlines()), "")
            left_out[name] = f"{type(error).__name__}: {first}"
            runs.pop(name, None)
    times = bench.measure(runs, calls)
    return {
        name: figures(one, share=bench.share(num_bytes, one), error=errors[name])
        for name, one in times.items()
    }, left_out


def _every_layer(attend: Callable[[int], Tensor | None], layers: int) -> Run:
    def run() -> None:
        for layer in range(layers):
            attend(layer)

    return run


def _candidates(made: Layers) -> dict[str, Callable[[int], Tensor | None]]:
    """Return what attends over the layer of a given number."""
    num_rows, num_heads, _ = made.queries.shape
    with_positions = (made.row_positions, made.slot_positions)
    positions: Positions = (None, None) if num_rows == 1 else with_positions
    workspace = workspace_for(made.keys[0], num_rows, num_heads, with_weights=True)
    out = made.out
    weights = torch.zeros(num_rows, made.keys.shape[2], device=out.device)

    def ours(positions: Positions, **options: Any) -> Callable[[int], Tensor]:  # noqa: ANN401
        def attend(layer: int) -> Tensor:
            cache = (made.keys[layer], made.values[layer])
            return attend_slots(
                made.queries, *cache, made.count, *positions,
                out=out, workspace=workspace, **options,
            )  # fmt: skip

        return attend

    bias = torch.zeros(num_rows, made.num_slots, dtype=out.dtype, device=out.device)
    hidden = made.row_positions[:, None] < made.slot_positions[None, : made.num_slots]
    bias.masked_fill_(hidden, float("-inf"))
    heads = made.queries.transpose(0, 1)[None]

    def fused(layer: int) -> Tensor:
        keys, values = made.used(layer)
        options: dict[str, Any] = {} if num_rows == 1 else {"attn_mask": bias}
        mixed = functional.scaled_dot_product_attention(
            heads, keys[None], values[None], enable_gqa=num_heads != keys.shape[0], **options
        )
        return mixed[0].transpose(0, 1)

    num_kv_heads = made.keys.shape[1]
    group = num_heads // num_kv_heads
    folded = made.queries.view(num_rows, num_kv_heads, group, -1).permute(1, 2, 0, 3)
    folded = folded.reshape(num_kv_heads, group * num_rows, -1)
    folded_bias = None if num_rows == 1 else bias.repeat(group, 1)

    def folded_fused(layer: int) -> Tensor:
        keys, values = made.used(layer)
        mixed = functional.scaled_dot_product_attention(
            folded[None], keys[None], values[None], attn_mask=folded_bias
        )[0]
        mixed = mixed.view(num_kv_heads, group, num_rows, -1).permute(2, 0, 1, 3)
        return mixed.reshape(num_rows, num_heads, -1)

    target = torch.empty_like(made.used(0)[0])

    def copy(layer: int) -> None:
        target.copy_(made.used(layer)[0])  # reads keys, writes as much: the bytes of both caches

    found: dict[str, Callable[[int], Tensor | None]] = {
        "copy of the same size": copy,
        OURS: ours(positions),
        f"{OURS}, weights added up": ours(positions, weights=weights, add=True),
    }
    if num_rows == 1:
        found[f"{OURS}, by position"] = ours(with_positions)
        if num_heads == num_kv_heads:
            found[f"{OURS}, on tensor cores"] = ours(positions, path="dot")
    if default_path(num_rows, num_heads // num_kv_heads, out.itemsize) == "wide":
        found[f"{OURS}, keys read for 16 rows at a time"] = ours(positions, path="dot")
    found["torch, fused"] = fused
    found["torch, fused, heads folded"] = folded_fused
    return found


def _sweep(bench: Bench, what: str, made: Layers, path: str) -> dict[str, Any]:
    """Print and return every tile's share of the copy bandwidth, the best first."""
    num_rows, num_heads, _ = made.queries.shape
    in_use = default_tile(path, made.keys[0])
    choices = itertools.product(*(WIDE_TILES if path == "wide" else TILES).values())
    tiles = [Tile(*choice) for choice in choices]
    positions: Positions = (made.row_positions, made.slot_positions)
    if num_rows == 1:
        positions = (None, None)
    num_bytes = 2 * made.used(0)[0].numel() * made.keys.itemsize
    runs: dict[str, Run] = {}
    for tile in tiles[:2] if bench.is_tiny else tiles:
        workspace = workspace_for(made.keys[0], num_rows, num_heads, path=path, tile=tile)

        def attend(
            layer: int,
            tile: Tile = tile,
            workspace: Workspace = workspace,
        ) -> Tensor:
            return attend_slots(
                made.queries, made.keys[layer], made.values[layer], made.count, *positions,
                workspace=workspace, path=path, tile=tile,
            )  # fmt: skip

        try:
            runs[str(tuple(tile))] = captured(_every_layer(attend, len(made.keys)), bench.device)
        except Exception as error:  # too much shared memory, for instance
            print(f"{what}: {tuple(tile)}: {type(error).__name__}")
    times = bench.measure(runs, len(made.keys))
    shares = print_sweep(what, in_use, times, lambda one: bench.share(num_bytes, one))
    return {"shape": what, "shares": shares}


def print_sweep(
    what: str, in_use: tuple[int, ...], times: dict[str, Times], rate: Callable[[Times], float]
) -> dict[str, float]:
    """Print every tile's times, the best first, and return what `rate` makes of them."""
    print(f"{what}; the tile in use is {tuple(in_use)}")
    best = sorted(times, key=lambda name: times[name].p50_us)
    rates = {name: rate(times[name]) for name in best}
    rows = [
        [name, times[name].p50_us, times[name].p20_us, times[name].p80_us, rates[name]]
        for name in best[:20]
    ]
    harness.table(["tile", "p50 us", "p20", "p80", "rate"], rows)
    return rates
