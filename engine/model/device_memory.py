"""Memory that is taken once for what every edit brings to a device, or keeps there a while.

An edit launches half a dozen kernels. To pin memory for the numbers that they read, and to have a
driver give memory for the rows that are kept, took longer than the kernels do: 0.1 ms for each
array, 0.3 ms for each 12 MB (H200).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Uploads:
    """Arrays of numbers on their way to a device, through pinned memory that is used in turns.

    What is uploaded is overwritten after some more uploads: it is for launches that are made at
    once, on the stream that is current every time.
    """

    def __init__(self, num_numbers: int, device: torch.device) -> None:
        """Take memory on both sides.

        Args:
            num_numbers: of one upload, as a rule, int64; larger ones take memory of their own.
            device: where they go.
        """
        self._device, self._is_cuda = device, device.type == "cuda"
        self._half = num_numbers
        size = 2 * num_numbers
        with torch.inference_mode(False):  # whoever comes first, all may write
            self._staged = torch.empty(size, dtype=torch.int64, pin_memory=self._is_cuda)
            self._there = torch.empty(size, dtype=torch.int64, device=device)
        self._on_host = self._staged.numpy()
        # When the device has read a half.
        self._read = [torch.cuda.Event() for _ in range(2)] if self._is_cuda else []
        self._turn = self._at = 0  # which half is being filled, and up to where

    def send(self, arrays: tuple[NDArray[np.int64], ...]) -> list[Tensor]:
        """Return arrays on the device, (n,) each, in one copy that the host does not wait for."""
        count = len(arrays[0])
        # Each starts at a multiple of 16 bytes: Triton would compile once more for other places.
        room = count + count % 2
        size = room * len(arrays)
        if size > self._half:
            return Uploads(size, self._device).send(arrays)
        start = self._start_of(size)
        for number, each in enumerate(arrays):
            self._on_host[start + number * room : start + number * room + count] = each
        part = slice(start, start + size)
        self._there[part].copy_(self._staged[part], non_blocking=True)
        starts = range(start, start + size, room) if room else [start] * len(arrays)
        return [self._there[at : at + count] for at in starts]

    def _start_of(self, size: int) -> int:
        """Return where so many numbers have room; wait until the device has read what was there."""
        if self._at + size > self._half * (self._turn + 1):
            if self._is_cuda:
                self._read[self._turn].record()
            self._turn = 1 - self._turn
            if self._is_cuda:
                self._read[self._turn].synchronize()
            self._at = self._half * self._turn
        start, self._at = self._at, self._at + size
        return start


def reserve(num_bytes: int, device: torch.device) -> None:
    """Have PyTorch take so much memory from a GPU's driver at once, and keep it for what is next.

    What it has got and nobody holds it cuts into pieces, and asks nobody for them.

    Raises:
        OutOfMemoryError: there is not so much.
    """
    if device.type == "cuda":
        torch.empty(num_bytes, dtype=torch.uint8, device=device)
