"""What rows leaned on, against a dense matrix of all attention that was ever paid."""

import numpy as np
import pytest
import torch

from keyturn.engine.model.passes import AttentionRecord
from keyturn.engine.prompt.dependencies import Dependencies, recorded_layers

from .test_kv_cache import new_cache

CAPACITY = 40


def new():
    cache = new_cache(capacity=CAPACITY)
    cache.add_record("name", np.int64, -1)
    return cache, Dependencies(cache, frozenset([0, 3]))


class Rows:
    """A cache whose rows are computed with random attention, and all of it in one matrix."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.cache, self.dependencies = new()
        self.paid = np.zeros((1000, 1000))  # by name: row, to
        self.debt = np.zeros(1000)
        self.count = 0

    @property
    def names(self):
        return self.cache.record("name")

    def append(self, count):
        start = self.cache.num_rows
        slots = self.cache.append(np.zeros(count, dtype=np.int64), start + np.arange(count))
        self.names[slots] = self.count + np.arange(count)
        self.count += count
        self.compute(slots)

    def compute(self, slots):
        record = self.dependencies.asked()
        shape = (len(slots), self.cache.num_rows)
        each = [self.random.dirichlet(np.ones(shape[1]), shape[0]) for _ in range(2)]
        for layer, weights in zip(record.layers, each, strict=True):
            record.weights[layer] = torch.tensor(weights, dtype=torch.float32)
        self.dependencies.note(slots, record)
        mean, names = np.mean(each, 0), self.names
        last = mean[-1].copy()
        for row, slot in enumerate(slots):
            mean[row, slot] = 0
            self.paid[names[slot]] = 0
            self.paid[names[slot], names] = mean[row]
        self.debt[names[slots]] = 0
        owed = self.paid[names[slots]] @ self.debt
        self.debt[names[slots]] = owed
        return last

    def change(self, slots, share):
        self.debt[self.names] += self.paid[self.names][:, self.names[slots]].sum(1) * share
        self.dependencies.charge((slots,), (share,))

    def assert_same(self):
        np.testing.assert_allclose(
            self.dependencies.debt, self.debt[self.names], rtol=2e-3, atol=2e-4
        )


@pytest.mark.parametrize("seed", range(20))
def test_debt_is_what_was_paid_to_rows_that_changed(seed):
    rows = Rows(seed)
    rows.append(int(rows.random.integers(5, 20)))
    for _ in range(12):
        count = rows.cache.num_rows
        some = rows.random.permutation(count)[: int(rows.random.integers(1, 4))]
        kind = rows.random.integers(4)
        if kind == 0 and count < CAPACITY - 6:
            rows.append(int(rows.random.integers(1, 6)))
        elif kind == 1 and count > 6:
            rows.change(some, 1.0)
            rows.cache.remove(some)
        elif kind == 2:
            rows.change(some, 0.5)
        else:
            rows.compute(some)
        rows.assert_same()


def test_the_last_row_computed_is_the_cursors():
    rows = Rows(0)
    rows.append(8)
    last = rows.compute(np.array([2, 5]))
    np.testing.assert_allclose(rows.dependencies.attention, last, rtol=1e-6)
    rows.cache.remove(np.array([0]))
    assert len(rows.dependencies.attention) == 7  # it follows its slots


def test_only_the_largest_entries_are_kept(monkeypatch):
    cache, dependencies = new()
    slots = cache.append(np.zeros(30, dtype=np.int64), np.arange(30))
    record = AttentionRecord(frozenset([0]))
    weights = np.random.default_rng(0).dirichlet(np.ones(30), 30).astype(np.float32)
    record.weights[0] = torch.from_numpy(weights)
    dependencies.note(slots, record)
    np.fill_diagonal(weights, 0)
    leaned_on = cache.record("leaned_on")
    for row in range(30):
        kept = {int(at) for at in leaned_on[row]} - {-1}
        assert set(np.argsort(-weights[row])[:5].tolist()) <= kept


@pytest.mark.parametrize(("num_layers", "expected"), [(30, {9, 19}), (2, {0, 1}), (1, {0})])
def test_layers_lie_at_the_same_depths(num_layers, expected):
    assert recorded_layers(num_layers) == expected
