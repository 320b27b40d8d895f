"""Which stale rows are worth computing again, and how many of them before a completion.

CacheBlend (arXiv 2405.16444, section 4) ranks rows by how far their keys and values are from what
they should be, which takes a pass over all rows through the first layers. What a row owes is known
without one: see `dependencies.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model.kv_cache import KVCache, Slots
from ..model.pass_cost import PassCost
from .dependencies import Dependencies

Floats = NDArray[np.float32]

# Between the root of attention, best for edits that a completion depends on, and attention itself,
# best for those elsewhere (`benchmarks/bench_repair.py`).
_POWER = np.float32(0.75)
# What a row is taken to owe that no record says anything of: attention alone ranks it then.
_LEAST_DEBT = np.float32(2e-3)
# Of a prompt's rows at most in one round; more gains little for their time.
SHARE = 0.09
# Where a round has moved the first token's distribution so far (KL in nats), another is spent:
# after one edit in twenty. Half of those would have been completed otherwise than from a full
# prefill, and they are one in eight of all such.
DISAGREEMENT = 0.02


@dataclass(frozen=True, slots=True)
class RepairLimit:
    """How many rows a round may compute.

    Attributes:
        max_ms: by what a pass is expected to take; 0: no limit, all that is stale; None: not
            asked, as many as `SHARE` allows.
        max_rows: just so many at most, whatever they take; None: as `max_ms` says.
    """

    max_ms: float | None = None
    max_rows: int | None = None

    def rows(self, num_tokens: int, cost: PassCost) -> int:
        """Return the number for a prompt of so many tokens."""
        if self.max_rows is not None:
            return self.max_rows
        if self.max_ms == 0:
            return num_tokens
        most = math.ceil(SHARE * num_tokens)
        return most if self.max_ms is None else cost.rows_within(self.max_ms, most)


# What a replay does, so that it does not depend on the machine.
BY_SHARE = RepairLimit()


def owed(dependencies: Dependencies) -> Floats:
    """Return how much each row's debt matters to the cursor's row, (num_rows,)."""
    return np.power(dependencies.attention, _POWER, dtype=np.float32) * dependencies.debt


def worth(dependencies: Dependencies) -> Floats:
    """Return what it is worth to compute each row again, (num_rows,)."""
    return (
        owed(dependencies)
        + np.power(dependencies.attention, _POWER, dtype=np.float32) * _LEAST_DEBT
    )


def stale_rows(cache: KVCache, num_tokens: int) -> Slots:
    """Return the rows that may be computed again: not the prompt's last nor what was generated."""
    positions = cache.positions
    return np.flatnonzero((positions >= cache.num_fresh) & (positions < num_tokens - 1))


def choose(cache: KVCache, worth: Floats, num_tokens: int, max_rows: int) -> Slots:
    """Return the stale rows that are worth most, at most so many, in order of position."""
    stale = stale_rows(cache, num_tokens)
    if len(stale) > max_rows:
        stale = stale[np.argpartition(-worth[stale], max_rows)[:max_rows]]
    return stale[np.argsort(cache.positions[stale])]


def disagreement(before: Tensor, after: Tensor) -> float:
    """Return KL(after || before), in nats, of two (vocab_size,) logits."""
    new, old = after.log_softmax(-1), before.log_softmax(-1)
    return float((new.exp() * (new - old)).sum())
