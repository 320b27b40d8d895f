"""Slots, records, turning and freshness of the cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.wire.errors import ContextTooLong

from ..tolerance import ONE_ROUNDING

CAPACITY = 40
# Keys that are turned in place instead of from their source are told after 100.
NUM_EDITS = 1500


def config(**changes):
    shape = {
        "family": "llama",
        "num_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": 50,
        "max_positions": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rotary_dim": 8,
        "rope_interleaved": False,
        "rope_scaling": None,
        "tied_embeddings": True,
        "attention_bias": False,
        "output_bias": False,
        "mlp_bias": False,
    }
    return ModelConfig(**{**shape, **changes})


def new_cache(dtype=torch.float32, capacity=CAPACITY, **changes):
    return KVCache(config(**changes), capacity, dtype, torch.device("cpu"))


def fill(cache, token_ids, positions):
    """Append rows whose keys and values are derived from their token alone."""
    slots = cache.append(np.array(token_ids), np.array(positions))
    write(cache, slots)
    cache.mark_computed(slots)
    return slots


def write(cache, slots):
    index = torch.from_numpy(slots)
    cos, sin = cache.table.at(torch.from_numpy(cache.positions[slots]))
    for layer in range(2):
        keys = torch.stack([content(token, layer) for token in cache.token_ids[slots].tolist()])
        keys = keys.to(cache.layer(0)[0].dtype)
        cache.write(layer, index, torch.cat([keys, keys + 1], 1), cos, sin)


def content(token, layer):
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(2 * token + layer))


def assert_consistent(cache, dtype=torch.float32):
    """Every row holds its own token's key, rotated once to its position, and its value."""
    positions = torch.from_numpy(cache.positions.copy())
    cos, sin = cache.table.at(positions)
    for layer in range(2):
        keys, values = cache.layer(layer)
        source = torch.stack([content(token, layer) for token in cache.token_ids.tolist()])
        source = source.to(dtype).transpose(0, 1)
        assert torch.equal(cache.unrotated(layer), source)
        assert torch.equal(values, source + 1)
        exact = rotated_in_float64(source, cos, sin, cache.table.interleaved)
        # One rounding to the dtype, on top of the float32 products and their sum.
        arithmetic = 4 * ONE_ROUNDING[torch.float32] * source.double().norm(dim=-1, keepdim=True)
        allowed = ONE_ROUNDING[dtype] * exact.abs() + arithmetic
        assert ((keys.double() - exact).abs() <= allowed).all()


def rotated_in_float64(keys, cos, sin, interleaved):
    half = cos.shape[-1]
    pairs = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (
            slice(0, half),
            slice(half, 2 * half),
        )
    )
    out = keys.double()
    first, second = (keys.double()[..., part] for part in pairs)
    out[..., pairs[0]] = first * cos.double() - second * sin.double()
    out[..., pairs[1]] = second * cos.double() + first * sin.double()
    return out


def test_deletion_is_filled_from_the_tail_and_records_follow_their_tokens():
    cache = new_cache()
    cache.add_record("debt", np.float32, 0.5)
    fill(cache, range(10), range(10))
    cache.record("debt")[:] = np.arange(10) / 10
    cache.remove(np.array([2, 5]))
    assert cache.num_rows == 8
    by_token = dict(zip(cache.token_ids.tolist(), cache.record("debt").tolist(), strict=True))
    assert by_token == pytest.approx({token: token / 10 for token in (0, 1, 3, 4, 6, 7, 8, 9)})
    assert_consistent(cache)


@pytest.mark.parametrize("head_dim", [6, 8])  # of bfloat16: 12 bytes are not whole words
def test_holes_are_filled_for_any_size_of_a_head(head_dim):
    cache = new_cache(torch.bfloat16, head_dim=head_dim, rotary_dim=head_dim)
    slots = cache.append(np.arange(10), np.arange(10))
    for layer in range(2):
        for number, part in enumerate((cache.unrotated(layer), *cache.layer(layer))):
            part[:] = (torch.arange(10) + 16 * number).view(1, 10, 1)
    cache.remove(slots[[8, 1, 4]])
    assert cache.token_ids.tolist() == [0, 7, 2, 3, 9, 5, 6]
    for layer in range(2):
        for number, part in enumerate((cache.unrotated(layer), *cache.layer(layer))):
            expected = torch.from_numpy(cache.token_ids) + 16 * number
            assert torch.equal(part.float(), expected.view(1, 7, 1).expand(part.shape).float())


def test_new_rows_start_with_the_fill_of_each_record():
    cache = new_cache()
    cache.add_record("debt", np.float32, 0.5)
    fill(cache, range(4), range(4))
    cache.record("debt")[:] = 9
    cache.remove(np.array([3]))
    slots = fill(cache, [7], [3])
    assert cache.record("debt")[slots].tolist() == [0.5]


def test_append_beyond_capacity_is_an_error_and_changes_nothing():
    cache = new_cache(capacity=4)
    fill(cache, range(4), range(4))
    with pytest.raises(ContextTooLong, match="5 tokens"):
        cache.append(np.array([9]), np.array([4]))
    assert cache.num_rows == 4
    assert_consistent(cache)


def test_turning_past_the_capacity_is_an_error_and_changes_nothing():
    cache = new_cache(capacity=4)
    fill(cache, range(3), range(3))
    with pytest.raises(ContextTooLong, match="5 tokens"):
        cache.turn(np.array([1, 2]), np.array([3, 4]))
    assert_consistent(cache)
    assert cache.positions.tolist() == [0, 1, 2]
    assert cache.num_fresh == 3


def test_turn_makes_rows_stale_from_the_lowest_position_touched():
    cache = new_cache()
    fill(cache, range(10), range(10))
    assert cache.num_fresh == 10
    cache.turn(np.arange(6, 10), np.arange(7, 11))
    assert cache.num_fresh == 6
    fill(cache, [30], [6])
    assert cache.num_fresh == 7  # the inserted row saw only fresh ones; those after it are stale


def test_order_follows_every_change():
    cache = new_cache()
    fill(cache, range(4), [3, 2, 0, 1])
    assert cache.by_position().tolist() == [2, 3, 1, 0]
    cache.turn(np.array([0]), np.array([9]))
    cache.turn(np.array([1]), np.array([11]))
    assert cache.by_position().tolist() == [2, 3, 0, 1]
    cache.remove(np.array([2]))
    assert cache.by_position().tolist() == [2, 0, 1]
    fill(cache, [7], [0])
    assert cache.by_position().tolist() == [3, 2, 0, 1]
    cache.clear()
    assert cache.by_position().tolist() == []


def test_removing_the_last_rows_leaves_the_others_fresh():
    cache = new_cache()
    fill(cache, range(10), range(10))
    cache.remove(np.array([8, 9]))
    assert cache.num_fresh == 8


def test_row_computed_over_a_gap_stays_stale():
    cache = new_cache()
    fill(cache, [1, 2], [0, 1])
    fill(cache, [4], [3])
    assert cache.num_fresh == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_keys_stay_within_one_rounding_after_many_edits(dtype, interleaved, rotary_dim):
    cache = new_cache(dtype, rope_interleaved=interleaved, rotary_dim=rotary_dim)
    generator = np.random.default_rng(0)
    fill(cache, range(20), range(20))
    for _ in range(NUM_EDITS):
        order = cache.by_position()
        at = int(generator.integers(0, cache.num_rows + 1))
        if cache.num_rows < 20 or (cache.num_rows < 38 and generator.random() < 0.5):
            moved = order[at:]
            cache.turn(moved, cache.positions[moved] + 1)
            fill(cache, generator.integers(0, 50, 1), [at])
        else:
            at = min(at, cache.num_rows - 1)
            moved = order[at + 1 :]
            cache.turn(moved, cache.positions[moved] - 1)
            cache.remove(order[at : at + 1])
    assert sorted(cache.positions.tolist()) == list(range(cache.num_rows))
    assert_consistent(cache, dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_operations_equal_a_list_of_tokens(data):
    cache, tokens = new_cache(), []
    for _ in range(data.draw(st.integers(1, 25))):
        start = data.draw(st.integers(0, len(tokens)))
        end = data.draw(st.integers(start, min(len(tokens), start + 5)))
        room = CAPACITY - len(tokens)
        inserted = data.draw(st.lists(st.integers(0, 49), max_size=min(4, room)))
        order = cache.by_position()
        shift = len(inserted) - (end - start)
        if shift:
            cache.turn(order[end:], cache.positions[order[end:]] + shift)
        cache.remove(order[start:end])
        if inserted:
            fill(cache, inserted, range(start, start + len(inserted)))
        tokens[start:end] = inserted
        assert cache.token_ids[cache.by_position()].tolist() == tokens
    if tokens:
        assert_consistent(cache)
        assert cache.num_bytes >= len(tokens) * 3 * 2 * 2 * 8 * 4
