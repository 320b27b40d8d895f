"""How far an edited cache is from a full prefill: the comparisons of `bench_edit_gpu.py`."""

from __future__ import annotations

import torch
from gpu.kernel_timer import relative_error
from torch import Tensor

from keyturn.engine.model.kv_cache import KVCache


def _in_order(cache: KVCache, rows: Tensor) -> Tensor:
    return rows[:, torch.from_numpy(cache.by_position()).to(rows.device)]


def layer_error(edited: KVCache, full: KVCache, layer: int) -> float:
    """Return the larger relative error of a layer's keys and values, rows in order."""
    pairs = zip(edited.layer(layer), full.layer(layer), strict=True)
    found = [relative_error(_in_order(edited, a), _in_order(full, b).double()) for a, b in pairs]
    return max(error if error == error else float("inf") for error in found)


def turn_error(cache: KVCache, layer: int) -> float:
    """Return the largest error of a rotated key, in roundings of bfloat16.

    One rounding, and float32's products and their sum.
    """
    source = cache.unrotated(layer).double()
    cos, sin = (
        part.double()
        for part in cache.table.at(torch.from_numpy(cache.positions.copy()).to(source.device))
    )
    first, second = source.chunk(2, -1)
    exact = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    # torch and the device round to nearest; the interpreter of Triton truncates.
    allowed = 2**-8 * exact.abs() + 2**-22 * source.norm(dim=-1, keepdim=True)
    error = ((cache.layer(layer)[0].double() - exact).abs() / allowed).max().item()
    return error if error == error else float("inf")
