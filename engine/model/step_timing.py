"""Times decode steps where they will be run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from .decoder import Decoder
from .kv_cache import KVCache, Slots
from .layers import go_on
from .pass_cost import STEP_SIZES

# Parts of the layers that are timed one at a time, and how often each step is.
_SHARES, _TIMES = 6, 2


def measure_steps(decoder: Decoder, num_slots: int) -> None:
    """Time decode steps that see few slots and `num_slots`, for the decoder's `step_cost`.

    On a CPU a part of the layers stands for all, another part each time, so that weights come from
    memory as they do in a whole step, and one thread's processor time counts, which other programs
    hardly disturb: some 0.1 s for the embedded model. Without the C library and without a GPU the
    guess stays.
    """
    if decoder.device.type == "cuda":
        with torch.cuda.device(decoder.device):
            _measure_whole(decoder, num_slots)
    elif decoder.is_in_c:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _measure_parts(decoder, num_slots)
        finally:
            torch.set_num_threads(num_threads)


def _measure_parts(decoder: Decoder, num_slots: int) -> None:
    config = decoder.config
    cache = KVCache(config, num_slots + STEP_SIZES[-1], decoder.dtype, decoder.device)
    at_once = max(1, config.num_layers // _SHARES)
    parts = [range(at, at + at_once) for at in range(0, config.num_layers - at_once + 1, at_once)]
    zeros = torch.zeros(STEP_SIZES[-1], config.hidden_size)
    layers: dict[tuple[int, int], float] = {}
    head: dict[int, float] = {}
    for num_before in (num_slots // 4, num_slots):
        _fill(cache, num_before)
        # Once through everything first: until then the weights are in their file.
        decoder.logits(decoder.forward(cache, cache.by_position()[-1:], go_on))
        for size in STEP_SIZES * _TIMES:
            parts.append(parts.pop(0))
            with _appended(cache, size) as slots:
                given = zeros[:size] if parts[0].start else None
                run = partial(decoder.forward, cache, slots, go_on, layers=parts[0], hidden=given)
                at = size, num_before
                layers[at] = min(_timed(time.thread_time, run), layers.get(at, math.inf))
            logits_ms = _timed(time.thread_time, partial(decoder.logits, zeros[:size]))
            head[size] = min(logits_ms, head.get(size, math.inf))
    whole = {at: ms * config.num_layers / at_once for at, ms in layers.items()}
    decoder.step_cost.learn(whole, head)


def _measure_whole(decoder: Decoder, num_slots: int) -> None:
    """Time whole steps: on a GPU they are graphs, the head included, once they are captured."""
    cache = KVCache(decoder.config, num_slots + STEP_SIZES[-1], decoder.dtype, decoder.device)
    zeros = torch.zeros(STEP_SIZES[-1], decoder.config.hidden_size, device=decoder.device)
    layers: dict[tuple[int, int], float] = {}
    head: dict[int, float] = {}
    alone_ms = math.inf
    for num_before in (num_slots // 4, num_slots):
        _fill(cache, num_before)
        for size in STEP_SIZES:
            with _appended(cache, size) as slots:

                def step(slots: Slots = slots) -> object:
                    return decoder.decode(cache, slots, go_on).read()

                def go_through(slots: Slots = slots) -> object:
                    return decoder.forward(cache, slots[:1], go_on)

                whole_ms = _least_ms(step)
                logits_ms = _least_ms(partial(decoder.logits, zeros[:size]))
                if size == 1:
                    alone_ms = _least_ms(go_through)
            head[size] = min(logits_ms, head.get(size, math.inf))
            layers[size, num_before] = max(whole_ms - head[size], whole_ms / 2)
    decoder.step_cost.learn(layers, head, alone=alone_ms / layers[1, num_slots])


def _fill(cache: KVCache, num_rows: int) -> None:
    """Append rows up to a number of them."""
    positions = np.arange(cache.num_rows, num_rows)
    cache.append(np.zeros_like(positions), positions)


@contextmanager
def _appended(cache: KVCache, count: int) -> Iterator[Slots]:
    """Have some more rows."""
    slots = cache.append(np.zeros(count, dtype=np.int64), cache.num_rows + np.arange(count))
    yield slots
    cache.remove(slots)


def _least_ms(work: Callable[[], object]) -> float:
    """Return milliseconds on a GPU, of what is captured when it runs for the second time."""
    return min([_timed(_waited_for, work) for _ in range(2 + _TIMES)][2:])


def _waited_for() -> float:
    """Return the time in seconds, when a GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    """Return milliseconds."""
    started_at = clock()
    work()
    return (clock() - started_at) * 1e3
