"""Calibration is 0 where probabilities are shares, and what it should be where they are not."""

import numpy as np
import pytest

from training.evaluation.calibration import NUM_BINS, calibration


def test_error_is_the_distance_of_probability_and_share():
    p = np.repeat((np.arange(NUM_BINS) + 0.5) / NUM_BINS, 200)
    right = np.concatenate([np.arange(200) < round(200 * q) for q in p[::200]])
    assert calibration(p, right).error == pytest.approx(0)
    sure = calibration(np.ones(1000), np.arange(1000) < 700)
    assert sure.error == pytest.approx(0.3) and sure.bins == [(1000, 1.0, 0.7)]
    assert 0.005 < sure.standard_error < 0.03
    assert np.isnan(calibration([], []).error)
