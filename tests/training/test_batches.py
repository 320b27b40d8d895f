"""Batches keep samples apart, and ask the head for the right tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import layouts
from training.data.batches import CLASS_WEIGHTS, MAX_SAMPLES, Packing, held_batches, pack
from training.data.layouts import MAX_TOKENS, MIDDLE_CLASSES, NONE, OTHER, SEES_SUFFIX
from training.data.stream import Stream, parse_passes


def sample(rng, length):
    tokens = rng.integers(1, 49152, length).astype(np.uint16)
    return tokens, rng.integers(0, 7, length).astype(np.uint8)


def write_shard(path, rng, num_samples):
    pairs = [sample(rng, int(rng.integers(2, 60))) for _ in range(num_samples)]
    length = np.array([len(t) for t, _ in pairs], np.int32)
    np.savez(
        path,
        tokens=np.concatenate([t for t, _ in pairs]),
        classes=np.concatenate([c for _, c in pairs]),
        length=length,
        **{k: np.zeros(len(pairs), np.uint8) for k in ("kind", "layout", "language")},
        reserved=np.zeros(len(pairs), bool),
    )
    return pairs


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 99), st.data())
@settings(max_examples=100, deadline=None)
def test_targets_are_next_tokens_of_the_same_sample(lengths, seed, data):
    rng = np.random.default_rng(seed)
    pairs = [sample(rng, n) for n in lengths]
    used = sum(lengths)
    size = used + data.draw(st.integers(0, 40))
    num_head = data.draw(st.integers(1, size))
    batch = pack(pairs, Packing(size, num_head), rng)
    tokens = np.concatenate([t for t, _ in pairs]).astype(np.int64)
    classes = np.concatenate([c for _, c in pairs])
    ends = set(np.cumsum(lengths).tolist())
    assert batch.token_ids[:used].tolist() == tokens.tolist()
    assert len(batch.selected) == len(batch.targets) == len(batch.weights) == num_head
    learnable = {i for i in range(used - 1) if i + 1 not in ends and classes[i + 1] != NONE}
    middles = {i for i in learnable if classes[i + 1] in MIDDLE_CLASSES}
    real = [i for i, w in zip(batch.selected.tolist(), batch.weights.tolist(), strict=True) if w]
    assert len(real) == len(set(real)) == min(num_head, len(learnable))
    assert set(real) <= learnable
    first = set(batch.selected[: batch.num_middle].tolist())
    assert first <= middles and batch.num_middle == min(num_head, len(middles))
    weights = CLASS_WEIGHTS[classes[[i + 1 for i in real]]] if real else np.zeros(0)
    total = max(weights.sum(), 1e-9)
    for i, weight, target in zip(real, weights / total, batch.targets.tolist(), strict=False):
        assert target == tokens[i + 1]
        assert weight == pytest.approx(float(batch.weights[real.index(i)]), rel=1e-5)


def test_positions_begin_anew_and_bounds_cut_padding():
    rng = np.random.default_rng(0)
    batch = pack([sample(rng, n) for n in (1, 3, 2048)], Packing(2052 + 5000, 64), rng)
    assert batch.positions[:4].tolist() == [0, 0, 1, 2]
    assert batch.bounds[:4].tolist() == [0, 1, 4, 2052]
    assert batch.bounds.shape == (MAX_SAMPLES + 1,)
    assert int(batch.bounds.diff().max()) <= MAX_TOKENS and int(batch.bounds[-1]) == 7052
    assert int(batch.positions.max()) < MAX_TOKENS


def test_no_attention_across_samples(tiny):
    rng = np.random.default_rng(0)
    first, second, other = sample(rng, 9), sample(rng, 7), sample(rng, 9)
    states = []
    for before in (first, other):
        batch = pack([before, second], Packing(20, 8), rng)
        hidden = tiny.hidden(batch.token_ids, batch.positions, batch.bounds, {30})[30]
        states.append(hidden[9:16])
    alone = pack([second], Packing(7, 4), rng)
    hidden = tiny.hidden(alone.token_ids, alone.positions, alone.bounds, {30})[30]
    assert torch.equal(states[0], states[1])
    torch.testing.assert_close(states[0], hidden)


def test_text_that_sees_the_suffix_is_drawn_more_often():
    rng = np.random.default_rng(0)
    classes = np.array([NONE] + [OTHER, SEES_SUFFIX] * 500, np.uint8)
    batch = pack([(np.ones(1001, np.uint16), classes)], Packing(1001, 300), rng)
    seen = (classes[batch.selected.numpy() + 1] == SEES_SUFFIX).mean()
    assert 0.6 < seen < 0.9


def test_held_batches_are_always_the_same(tmp_path):
    rng = np.random.default_rng(0)
    for unit in range(2):
        write_shard(tmp_path / f"p00_u{unit:03d}.npz", rng, 50)
    batches = held_batches(tmp_path, 256, 64, 3)
    again = held_batches(tmp_path, 256, 64, 3)
    assert len(batches) == 3
    for a, b in zip(batches, again, strict=True):
        assert torch.equal(a.token_ids, b.token_ids) and torch.equal(a.selected, b.selected)
    halves = [held_batches(tmp_path, 256, 64, 1, rank, 2) for rank in (0, 1)]
    assert not torch.equal(halves[0][0].token_ids, halves[1][0].token_ids)
    with pytest.raises(FileNotFoundError, match="prepare"):
        held_batches(tmp_path / "none", 256, 64, 1)


def test_stream_shows_every_sample_of_a_pass_and_skips_what_was_taken(tmp_path):
    rng = np.random.default_rng(0)
    shards = [write_shard(tmp_path / f"p00_u{unit:03d}.npz", rng, 150) for unit in range(6)]
    cpu = torch.device("cpu")
    stream = Stream(tmp_path, Packing(512, 64), cpu, parse_passes("0:6"), seed=1)
    again = Stream(tmp_path, Packing(512, 64), cpu, parse_passes("0:6"), seed=1)
    seen = set()
    for _ in range(20):
        batch, same = stream.next(), again.next()
        assert torch.equal(batch.token_ids, same.token_ids)
        bounds = batch.bounds.tolist()
        for a, b in zip(bounds, bounds[1:], strict=False):
            seen.add(tuple(batch.token_ids[a:b].tolist()))
    of_first = {tuple(t.tolist()) for pairs in shards[:3] for t, _ in pairs}
    assert len(seen & of_first) > 250
    later = Stream(tmp_path, Packing(512, 64), cpu, parse_passes("0:6"), seed=1, skip=3)
    bounds, batch = None, later.next()
    bounds = batch.bounds.tolist()
    first = tuple(batch.token_ids[bounds[0] : bounds[1]].tolist())
    assert first in {tuple(t.tolist()) for pairs in shards[3:] for t, _ in pairs}
    assert later.num_shards >= 6


def test_passes_are_read_from_text():
    assert parse_passes("0+1:48,2:96") == [([0, 1], 48), ([2], 96)]
    assert layouts.LAYOUTS[layouts.EFIM] == "efim"
