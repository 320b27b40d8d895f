"""Which stale rows are worth computing again before a completion.

CacheBlend (arXiv 2405.16444, section 4) ranks rows by how far their keys and values are from what
they should be, which takes a pass over all rows through the first layers. What a row owes is known
without one: see `dependencies.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..model.kv_cache import KVCache, Slots
from .dependencies import Dependencies

Floats = NDArray[np.float32]

# What a row is taken to owe that no record says anything of: attention alone ranks it then.
_LEAST_DEBT = 1e-3


def worth(dependencies: Dependencies) -> Floats:
    """Return what it is worth to compute each row again, (num_rows,): √attention × debt."""
    return np.sqrt(dependencies.attention) * (dependencies.debt + _LEAST_DEBT)


def choose(cache: KVCache, worth: Floats, num_tokens: int, max_rows: int) -> Slots:
    """Return the stale rows that are worth most, in order of position.

    Args:
        cache: the rows.
        worth: of each.
        num_tokens: of the prompt; its last row and what was generated after it are no candidates.
        max_rows: most rows.
    """
    positions = cache.positions
    stale = np.flatnonzero((positions >= cache.num_fresh) & (positions < num_tokens - 1))
    if len(stale) > max_rows:
        stale = stale[np.argpartition(-worth[stale], max_rows)[:max_rows]]
    return stale[np.argsort(positions[stale])]
