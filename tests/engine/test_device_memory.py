"""Numbers arrive as they were sent, however many were sent before; pieces of slabs are apart."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.model.device_memory import Slabs, Uploads

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
