"""How far a model's probabilities are from how often it is right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NUM_BINS = 10


class Calibration(NamedTuple):
    """Calibration of some answers.

    Attributes:
        error: expected calibration error (Guo et al., arXiv 1706.04599, section 2): the mean over
            the answers of the distance between the probability and the share that is right, in
            `NUM_BINS` bins of equal width.
        standard_error: of it, by resampling the answers.
        bins: how many answers there are, their mean probability, and the share that is right.
    """

    error: float
    standard_error: float
    bins: list[tuple[int, float, float]]


def calibration(probability: ArrayLike, right: ArrayLike, resamples: int = 100) -> Calibration:
    """Compare probabilities (n,) in 0..1 with what came true, (n,) bool; nan without answers."""
    p, y = np.asarray(probability, float), np.asarray(right, float)
    if not len(p):
        return Calibration(float("nan"), float("nan"), [])
    place = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(resamples if len(p) > 1 else 0):
        chosen = rng.integers(0, len(p), len(p))
        errors.append(_error(p[chosen], y[chosen], place[chosen]))
    bins = [
        (int(mine.sum()), round(float(p[mine].mean()), 4), round(float(y[mine].mean()), 4))
        for mine in (place == number for number in range(NUM_BINS))
        if mine.any()
    ]
    spread = float(np.std(errors)) if errors else float("nan")
    return Calibration(_error(p, y, place), spread, bins)


def _error(p: np.ndarray, y: np.ndarray, place: np.ndarray) -> float:
    gaps = np.bincount(place, p - y, NUM_BINS)
    return float(np.abs(gaps).sum() / len(p))
