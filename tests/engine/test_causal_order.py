"""Rows in order of position get what attention with a mask gives them."""

import pytest
import torch

from keyturn.engine.model.attention import attend, causal_bias
from keyturn.kernels.attention.many_rows_cpu import causal_order

from ..tolerance import assert_close


def positions_of(num_slots, is_shuffled):
    if not is_shuffled:
        return torch.arange(num_slots)
    return torch.randperm(num_slots, generator=torch.Generator().manual_seed(num_slots))


def tensors(rows, slots, group, dtype):
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, 2 * group, 8, generator=random)
    keys, values = torch.randn(2, 2, slots, 8, generator=random)
    return queries.to(dtype), keys.to(dtype), values.to(dtype)


def assert_as_masked(rows, slots, group, dtype):
    """Compare with the mask, in float64 of the same values, attention weights included."""
    queries, keys, values = tensors(len(rows), len(slots), group, dtype)
    order = causal_order(rows, slots, dtype)
    assert order is not None
    found_weights = torch.full((len(rows), len(slots)), torch.nan)
    found = order.attend(queries, keys, values, found_weights)
    exact = [part.double() for part in (queries, keys, values)]
    weights = torch.empty_like(found_weights)
    bias = causal_bias(rows, slots, torch.float64)
    assert_close(found, attend(*exact, bias, weights), dtype)
    assert_close(found_weights, weights, dtype)
    assert not found_weights[rows[:, None] < slots].any()
    assert torch.equal(order.attend(queries, keys, values, None), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("num_rows", [16, 17, 129, 257])
@pytest.mark.parametrize(("num_before", "num_after"), [(0, 0), (0, 37), (90, 0), (130, 200)])
def test_rows_of_a_chunk(num_rows, num_before, num_after, is_shuffled, group, dtype):
    slots = positions_of(num_before + num_rows + num_after, is_shuffled)
    rows = torch.arange(num_before, num_before + num_rows)
    assert_as_masked(rows, slots, group, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_rows_with_gaps_and_the_last_repeated(is_shuffled, dtype):
    rows = torch.cat([torch.arange(3, 150, 2), torch.tensor([299] * 7)])
    assert_as_masked(rows, positions_of(300, is_shuffled), 3, dtype)


def test_rows_out_of_sight_are_not_seen():
    slots = torch.arange(100)
    slots[50:60] += 1 << 40
    assert_as_masked(torch.arange(60, 100), slots, 3, torch.float32)


@pytest.mark.parametrize(
    ("rows", "num_slots"),
    [
        (torch.arange(1), 40),
        (torch.arange(3), 40),
        (torch.arange(15), 40),
        (torch.arange(39, 10, -1), 40),
        (torch.full((16,), 39), 40),
    ],
    ids=["one", "three", "fifteen", "backwards", "all see all"],
)
def test_other_rows_are_left_to_the_mask(rows, num_slots):
    assert causal_order(rows, torch.arange(num_slots), torch.bfloat16) is None


def test_slots_in_order_are_not_gathered():
    rows, slots = torch.arange(64, 128), torch.arange(500)
    found = causal_order(rows, slots, torch.bfloat16)
    assert found.order is None and found.blocks[-1].stop == 128
    slots[[400, 401]] = slots[[401, 400]]
    assert causal_order(rows, slots, torch.bfloat16).order is None
    slots[[10, 11]] = slots[[11, 10]]
    assert causal_order(rows, slots, torch.bfloat16).order.tolist() == slots[:128].tolist()
