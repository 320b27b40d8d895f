"""Further candidates: what the model would have written where it was least sure of what it wrote.

Each takes one other token and goes on from there; the rows before it are those of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .generate import Generated, Pick

# Decodes anew: what is kept of the first, its last token another one.
Branch = Callable[[list[Pick]], Generated]

# Of the joint probability of a text to where it branches off, less is no candidate.
_LEAST = 0.02


def candidates(
    first: Generated, num_others: int, branch: Branch, has_time: Callable[[], bool]
) -> list[Generated]:
    """Return other completions, the likelier first, none alike but for white space.

    Args:
        first: the one that the model prefers, with its runners-up.
        num_others: so many at most.
        branch: decodes one.
        has_time: whether another may be begun.
    """
    picks = [Pick(*each) for each in zip(first.token_ids, first.probabilities, strict=True)]
    joint, found = 1.0, []
    for at, (pick, other) in enumerate(zip(picks, first.runners_up, strict=True)):
        found.append((joint * other.probability, at, other))
        joint *= pick.probability
    others: list[Generated] = []
    seen = {_normal(first.text), ""}
    for likelihood, at, other in sorted(found, key=lambda each: -each[0]):
        if len(others) == num_others or likelihood < _LEAST or not has_time():
            break
        made = branch([*picks[:at], other])
        if _normal(made.text) not in seen:
            seen.add(_normal(made.text))
            others.append(made)
    return sorted(others, key=_mean_log_probability, reverse=True)


def _normal(text: str) -> str:
    return " ".join(text.split())


def _mean_log_probability(made: Generated) -> float:
    logs = [math.log(max(each, 1e-30)) for each in made.probabilities]
    return sum(logs) / max(1, len(logs))
