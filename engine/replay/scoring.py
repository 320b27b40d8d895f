"""Scores of a replay: closeness of two sessions' distributions, similarity of texts."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Closeness(NamedTuple):
    """How close the distributions of two sessions are, token by token."""

    same_top1: list[bool]
    kl: list[float]


def closeness(reference: Tensor, logits: Tensor) -> Closeness:
    """Compare logits, both (n, vocab) fp32: same top-1, and KL(reference || logits) in nats."""
    wanted = reference.double().log_softmax(-1)
    given = logits.double().log_softmax(-1)
    kl = (wanted.exp() * (wanted - given)).sum(-1)
    same = reference.argmax(-1) == logits.argmax(-1)
    return Closeness(same.tolist(), kl.clamp_min(0).tolist())


def edit_similarity(text: str, reference: str) -> float:
    """Return 1 - Levenshtein distance / the longer length; 1 for two empty strings."""
    if not (longer := max(len(text), len(reference))):
        return 1.0
    row = list(range(len(reference) + 1))
    for i, a in enumerate(text, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(reference, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
            diagonal, row[j] = row[j], best
    return 1 - row[-1] / longer


def percentile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank percentile, None without values."""
    if not values:
        return None
    return sorted(values)[math.ceil(round(len(values) * share, 6)) - 1]
