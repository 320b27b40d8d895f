"""Numbers arrive as they were sent, however many were sent before; pieces of slabs are apart."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.model.device_memory import Slabs, Uploads
from keyturn.engine.prompt.dropped_rows import DroppedRows

from .test_kv_cache import new_cache, write

CPU = torch.device("cpu")


@given(st.integers(2, 12), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 2)), max_size=40))
def test_what_is_sent_arrives_and_outlives_the_next_upload(num_numbers, sizes):
    uploads, number = Uploads(num_numbers, CPU), 0
    last = None
    for size, count in sizes:
        arrays = tuple(np.arange(size) + 100 * number + 50 * each for each in range(count))
        found = uploads.send(arrays)
        number += 1
        for sent, arrived in [*zip(arrays, found, strict=True), *(last or ())]:
            assert arrived.tolist() == sent.tolist()
        takes = count * (size + size % 2)
        last = list(zip(arrays, found, strict=True)) if 2 * takes <= num_numbers else None


def test_each_array_begins_at_sixteen_bytes():
    uploads = Uploads(16, CPU)
    for _ in range(3):
        starts = [each.data_ptr() for each in uploads.send((np.arange(3), np.arange(3)))]
        assert starts[1] - starts[0] == 32


def test_pieces_of_a_slab_are_apart_and_a_large_one_is_alone(monkeypatch):
    device = type("Device", (), {"type": "cuda"})()
    made = []

    def empty(shape, *, dtype, device=None, pin_memory=False):
        made.append(torch.zeros(shape, dtype=dtype))
        return made[-1]

    monkeypatch.setattr(torch, "empty", empty)
    slabs = Slabs(80, torch.int64, device)
    pieces = [slabs.take(2, 2) for _ in range(3)]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    assert [piece.unique().tolist() for piece in pieces] == [[0], [1], [2]]
    assert [len(each) for each in made] == [10, 10], "two pieces fit one slab"
    assert slabs.take(11).shape == (11,)
    assert [each.numel() for each in made] == [10, 10, 11]


def test_a_slab_counts_as_a_whole_as_long_as_one_of_its_pieces_is_held(monkeypatch):
    cache = new_cache(capacity=120)
    cache.add_record("segment", np.int64, -1)
    slabs, num_taken = [], 0

    def take(_, *shape):  # four pieces each
        nonlocal num_taken
        size = math.prod(shape)
        if num_taken % 4 == 0:
            slabs.append(torch.empty(4 * size, dtype=cache.copied_dtype))
        at, num_taken = num_taken % 4 * size, num_taken + 1
        return slabs[-1][at : at + size].view(shape)

    monkeypatch.setattr(Slabs, "take", take)
    dropped = DroppedRows(cache)
    blocks = [np.arange(20 * block, 20 * block + 20) for block in range(8)]

    def drop(tokens):
        write(cache, cache.append(tokens, np.arange(20)))
        cache.record("segment")[:] = 0
        dropped.keep(cache.by_position(), np.arange(20), np.zeros(20, np.float32))
        cache.remove(np.arange(20))

    def is_kept(tokens):
        return bool(dropped.find(np.arange(20), tokens, np.zeros(21, np.int64)))

    for block in blocks:
        drop(block)
    one = slabs[0].nbytes
    assert dropped.num_bytes == 2 * one == 160 * cache.copied_row_bytes
    for block in blocks[1:4]:  # their older copies go, the first one's stays in the slab
        drop(block)
    assert dropped.num_bytes == 3 * one
    dropped.bound(3 * one - 1)
    assert dropped.num_bytes == 2 * one
    assert [is_kept(block) for block in blocks] == [False] + [True] * 7
    dropped.clear()
    assert dropped.num_bytes == 0
