"""What every row of a cache leaned on when it was computed, and how much of that has changed since.

The pass that computes rows leaves behind what they attended to: the mean over the heads of a few
layers, of which each row keeps its largest entries (Cache-Craft, arXiv 2502.15734, keeps such sums
for whole chunks). When rows go, every row that stays gets into debt by what it had paid to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.attention.reference import NUM_ENTRIES, largest_entries
from ..model.kv_cache import KVCache, Slots
from ..model.passes import AttentionRecord

Floats = NDArray[np.float32]

# Layers that are recorded, as shares of the model's depth. Two rank stale rows as well as all do
# (of 30 layers 9 and 19; 14 alone twice as badly).
_DEPTHS = (0.3, 0.65)

# Of the rows in debt, up to this quantile: what a row owes that was away.
_HIGH = 0.9


def recorded_layers(num_layers: int) -> frozenset[int]:
    """Return the numbers of the layers whose attention is recorded."""
    return frozenset(int(num_layers * depth) for depth in _DEPTHS)


class Dependencies:
    """Records of one cache: what its rows leaned on, their debt, and the cursor row's attention.

    Attributes:
        layers: the layers whose attention is recorded.
    """

    def __init__(self, cache: KVCache, layers: frozenset[int]) -> None:
        """Add the records to a cache that has no rows yet."""
        self.layers = layers
        self._cache = cache
        cache.add_record("leaned_on", np.int32, -1, width=NUM_ENTRIES, holds_slots=True)
        cache.add_record("leaning", np.float16, 0, width=NUM_ENTRIES)
        cache.add_record("debt", np.float32, 0)
        cache.add_record("attention", np.float32, 0)

    @property
    def debt(self) -> Floats:
        """Attention that each row had paid to rows that have changed since, (num_rows,)."""
        return self._cache.record("debt")

    @property
    def attention(self) -> Floats:
        """What the cursor's row paid to each row when it was last computed, (num_rows,)."""
        return self._cache.record("attention")

    def asked(self) -> AttentionRecord:
        """Return what a pass is to leave behind of all its rows."""
        return AttentionRecord(self.layers)

    def note(self, slots: Slots, record: AttentionRecord) -> None:
        """Keep what a pass over rows left behind; the last of them is the cursor's.

        Their debt is what they owe through rows that are in debt themselves.
        """
        self._keep(slots, torch.stack(list(record.weights.values())).mean(0))
        leaned_on, leaning = self._of(slots)
        debt = self.debt
        debt[slots] = 0
        owed = np.append(debt, np.float32(0))[leaned_on]  # -1 is none
        debt[slots] = (owed * leaning).sum(1, dtype=np.float32)

    def _keep(self, slots: Slots, mean: Tensor) -> None:
        """Keep what the last row attends to, and of each the largest entries but its own."""
        of_cursor = mean[-1].clone()
        (own,) = self._cache.on_device(slots)
        mean.scatter_(1, own[:, None], 0.0)
        # One copy: a GPU is waited for once. Slots are small enough for float32.
        parts = (of_cursor, *(each.flatten() for each in largest_entries(mean)))
        found = torch.cat([part.float() for part in parts]).cpu().numpy()
        of_cursor, entries = np.split(found, [mean.shape[1]])
        indices, weights = entries.reshape(2, len(slots), NUM_ENTRIES)
        self.attention[:] = of_cursor
        self._cache.record("leaned_on")[slots] = indices
        self._cache.record("leaning")[slots] = weights

    def _of(self, slots: Slots) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        cache = self._cache
        return cache.record("leaned_on")[slots], cache.record("leaning")[slots]

    def high_debt(self) -> float:
        """Return what only a tenth of the rows owe more than; 0 without rows in debt."""
        debt = self.debt
        return float(np.quantile(debt[debt > 0], _HIGH)) if debt.any() else 0.0

    def charge(self, slots: Sequence[Slots], shares: Sequence[float]) -> None:
        """Put every row into debt by what it paid to changed rows; before those are removed.

        Args:
            slots: rows that have changed, some at a time.
            shares: how much of each of them has, from 0 to 1.
        """
        changed = np.zeros(self._cache.num_rows + 1, dtype=np.float32)  # the last is for -1: none
        for some, share in zip(slots, shares, strict=True):
            changed[some] = np.maximum(changed[some], share)
        leaned_on = self._cache.record("leaned_on").ravel()
        hits = np.flatnonzero(np.take(changed > 0, leaned_on, mode="wrap"))
        if len(hits):
            leaning = self._cache.record("leaning").ravel()
            paid = leaning[hits] * changed[leaned_on[hits]]
            debt = self.debt
            rows = hits // NUM_ENTRIES
            debt += np.bincount(rows, paid, minlength=len(debt)).astype(np.float32)
