"""How a change of the prompt is served: which rows of the cache are used again, and what is healed.

The names are `wire.config.POLICIES`, as settings, commands and traces know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..wire.errors import BadRequest
from .edit_plan import Run, common_prefix, match_rows

Ints = NDArray[np.int64]
# Tokens by segment, in order of position: of the cache's rows, or of a prompt.
Rows = Mapping[int, Ints]

_NO_TOKENS: Ints = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to serve a change.

    Attributes:
        name: as it is asked for.
        reuse: returns the resident rows that serve the wanted tokens, as `match_rows` does.
        crosses_segments: rows may serve another segment than they were computed for.
        starts_anew: every layout is computed from nothing: the oracle.
        keeps_dropped: rows that are dropped are kept for a while and turned back into place.
        repairs: rows keep what they leaned on, and the stale ones that matter are computed again
            before a completion.
        heals_first: a completion is computed only over fresh rows.
        heals_when_idle: a replay's simulated idle time heals.
    """

    name: str
    reuse: Callable[[Rows, Rows], list[Run]]
    crosses_segments: bool = False
    starts_anew: bool = False
    keeps_dropped: bool = False
    repairs: bool = False
    heals_first: bool = False
    heals_when_idle: bool = False


def _common_prefix(resident: Rows, wanted: Rows) -> list[Run]:
    """Return the run of rows up to the first token that differs, as vLLM and SGLang reuse them."""
    old, new = (np.concatenate([_NO_TOKENS, *rows.values()]) for rows in (resident, wanted))
    length = common_prefix(old, new)
    return [Run(0, 0, length)] if length else []


_KNOWN = (
    Policy("full", _common_prefix, crosses_segments=True, starts_anew=True),
    Policy("prefix", _common_prefix, crosses_segments=True),
    Policy("turn", match_rows, keeps_dropped=True),
    Policy("repair", match_rows, keeps_dropped=True, repairs=True, heals_when_idle=True),
    Policy("heal", match_rows, keeps_dropped=True, heals_first=True, heals_when_idle=True),
)


def find_policy(name: str) -> Policy:
    """Return the policy of a name.

    Raises:
        BadRequest: there is none.
    """
    for policy in _KNOWN:
        if policy.name == name:
            return policy
    known = ", ".join(policy.name for policy in _KNOWN)
    raise BadRequest(f"policy '{name}' is not known; use one of {known}")
