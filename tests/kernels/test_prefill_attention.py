"""Torch's fused kernels over a cache against plain attention; on a GPU with TRITON_INTERPRET=0."""

import pytest
import torch

from keyturn.kernels.attention import many_rows_gpu as prefill_attention

from ..tolerance import assert_close


def plain(queries, keys, values, row_positions, slot_positions):
    """Attend in float64, every row to the slots at its position and before."""
    group = queries.shape[1] // keys.shape[0]
    queries, keys, values = (part.double() for part in (queries, keys, values))
    keys, values = (part.repeat_interleave(group, 0) for part in (keys, values))
    scores = torch.einsum("rhd,hsd->hrs", queries, keys) * queries.shape[-1] ** -0.5
    scores.masked_fill_(row_positions[:, None] < slot_positions[None, :], float("-inf"))
    return torch.einsum("hrs,hsd->rhd", scores.softmax(-1), values)


def case(rows, slots, heads, device, dtype=torch.bfloat16):
    """Return queries, and keys and values that are the first slots of a larger cache."""
    random = torch.Generator().manual_seed(rows + slots)
    num_heads, num_kv_heads = heads
    queries = torch.randn(rows, num_heads, 16, generator=random)
    cache = torch.randn(2, num_kv_heads, slots + 5, 16, generator=random)
    keys, values = cache.to(device, dtype)[:, :, :slots]
    return queries.to(device, dtype), keys, values


HEADS = [(4, 4), (6, 2), (4, 1)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (3, 17), (17, 17), (129, 200), (1024, 1024)])
def test_rows_at_the_end_of_ordered_slots_see_what_is_before_them(rows, slots, heads, device):
    queries, keys, values = case(rows, slots, heads, device)
    positions = torch.arange(slots, device=device)
    found = prefill_attention.attend_in_order(queries, keys, values)
    assert found.is_contiguous()
    expected = plain(queries, keys, values, positions[slots - rows :], positions)
    assert_close(found, expected, torch.bfloat16)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_slots_in_any_order_are_gathered_and_those_behind_the_rows_left_out(heads, device):
    rows, slots = 33, 129
    queries, keys, values = case(rows, slots, heads, device)
    positions = torch.randperm(slots, generator=torch.Generator().manual_seed(1)).to(device)
    order = positions.argsort()[:100]
    found = prefill_attention.attend_in_order(queries, keys, values, order)
    expected = plain(queries, keys, values, torch.arange(67, 100, device=device), positions)
    assert_close(found, expected, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("rows", "slots"), [(1, 3), (17, 129), (64, 136)])
def test_rows_in_any_order_see_their_positions(rows, slots, heads, dtype, device):
    queries, keys, values = case(rows, slots, heads, device, dtype)
    random = torch.Generator().manual_seed(2)
    positions = torch.randperm(slots, generator=random).to(device)
    row_positions = torch.randint(0, slots, (rows,), generator=random).to(device)
    bias = prefill_attention.position_bias(row_positions, positions, dtype)
    assert bias.shape == (rows, slots)
    assert bias.stride(0) % 8 == 0
    found = prefill_attention.attend_by_position(queries, keys, values, bias)
    assert found.is_contiguous()
    assert_close(found, plain(queries, keys, values, row_positions, positions), dtype)


def test_without_a_mask_every_slot_is_seen(device):
    queries, keys, values = case(3, 17, (4, 2), device)
    last = torch.full((3,), 17, device=device)
    found = prefill_attention.attend_by_position(queries, keys, values, None)
    expected = plain(queries, keys, values, last, torch.arange(17, device=device))
    assert_close(found, expected, torch.bfloat16)
