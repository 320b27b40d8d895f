import math

import pytest
import torch

from keyturn.engine.replay.scoring import closeness, edit_similarity, percentile


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [("", "", 1.0), ("abc", "abc", 1.0), ("", "ab", 0.0), ("kitten", "sitting", 1 - 3 / 7)],
)
def test_edit_similarity(a: str, b: str, similarity: float) -> None:
    assert edit_similarity(a, b) == pytest.approx(similarity)
    assert edit_similarity(b, a) == pytest.approx(similarity)


def test_closeness_is_kl_of_reference_and_same_top1() -> None:
    wanted, given = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    near = closeness(torch.stack([wanted, wanted]).log(), torch.stack([wanted, given]).log() + 3)
    assert near.same_top1 == [True, False]
    assert near.kl == pytest.approx([0.0, 0.25 * math.log(2)])


def test_percentile_is_nearest_rank() -> None:
    assert percentile([], 0.95) is None
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert percentile([1.0, 2.0, 3.0], 0.95) == 3.0
