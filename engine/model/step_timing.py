"""Times decode steps where they will be run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from .decoder import Decoder
from .kv_cache import KVCache
from .pass_cost import STEP_SIZES

# Parts of the layers that are timed one at a time, and how often each step is.
_SHARES, _TIMES = 6, 3


def measure_steps(decoder: Decoder, num_slots: int) -> None:
    """Time decode steps that see few slots and `num_slots`, for the decoder's `step_cost`.

    On a CPU a part of the layers stands for all, another part each time, so that weights come from
    memory as they do in a whole step: some 0.1 s for the embedded model. Without the C library and
    without a GPU the guess stays.
    """
    config, is_gpu = decoder.config, decoder.device.type == "cuda"
    if not is_gpu and not decoder.is_in_c:
        return
    cache = KVCache(config, num_slots + STEP_SIZES[-1], decoder.dtype, decoder.device)
    at_once = config.num_layers if is_gpu else max(1, config.num_layers // _SHARES)
    parts = [range(at, at + at_once) for at in range(0, config.num_layers - at_once + 1, at_once)]
    zeros = torch.zeros(STEP_SIZES[-1], config.hidden_size, device=decoder.device)
    layers: dict[tuple[int, int], float] = {}
    head: dict[int, float] = {}
    for num_before in (num_slots // 4, num_slots):
        positions = np.arange(cache.num_rows, num_before)
        cache.append(np.zeros_like(positions), positions)
        # Once through everything first: until then the weights are in their file.
        decoder.logits(decoder.forward(cache, cache.by_position()[-1:], _go_on))
        for size in STEP_SIZES * _TIMES:
            parts.append(parts.pop(0))
            slots = cache.append(np.zeros(size, dtype=np.int64), num_before + np.arange(size))
            given = zeros[:size] if parts[0].start else None
            run = partial(decoder.forward, cache, slots, _go_on, layers=parts[0], hidden=given)
            at = size, num_before
            layers[at] = min(_timed(decoder, run), layers.get(at, math.inf))
            logits_ms = _timed(decoder, partial(decoder.logits, zeros[:size]))
            head[size] = min(logits_ms, head.get(size, math.inf))
            if is_gpu and size == 1:  # a graph of its own, with the head
                whole_ms = _timed(decoder, partial(decoder.last_logits, cache, slots, _go_on))
                layers[at] = max(min(whole_ms - head[size], layers[at]), whole_ms / 2)
            cache.remove(slots)
    whole = {at: ms * config.num_layers / at_once for at, ms in layers.items()}
    decoder.step_cost.learn(whole, head, rows_alone=2 if is_gpu else 1)


def _timed(decoder: Decoder, work: Callable[[], object]) -> float:
    """Return milliseconds."""
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    started_at = time.perf_counter()
    work()
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return (time.perf_counter() - started_at) * 1e3


def _go_on() -> None:
    """Never cancel."""
