"""Numbers arrive as they were sent, however many were sent before."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.model.device_memory import Uploads, reserve

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


def test_memory_is_only_taken_ahead_on_a_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "empty", lambda size, **_: taken.append(size))
    reserve(100, CPU)
    assert not taken
    reserve(100, torch.device("cuda"))
    assert taken == [100]
