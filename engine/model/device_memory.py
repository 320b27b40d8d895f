"""Memory that is taken once for what every edit brings to a device, or keeps there a while.

An edit launches half a dozen kernels. To pin memory for the numbers that they read, and to have a
driver give memory for the rows that they keep, took longer than the kernels do: 0.1 ms for each
array, 0.3 ms for each 12 MB (H200).
"""

from __future__ import annotations

import math

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
        # Only of pinned memory it is known when it has been read.
        self._there[part].copy_(self._staged[part], non_blocking=self._is_cuda)
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


class Slabs:
    """Memory for pieces that are kept a while; on CUDA it is taken for many of them at a time.

    A piece is a part of a slab, which goes when the last of its pieces has gone: what is only held
    for a moment is no piece.
    """

    def __init__(self, num_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        """Take nothing yet.

        Args:
            num_bytes: of a slab.
            dtype: of all pieces.
            device: where they are.
        """
        self._size, self._dtype, self._device = num_bytes // dtype.itemsize, dtype, device
        self._slab: Tensor | None = None
        self._at = 0

    def take(self, *shape: int) -> Tensor:
        """Return a piece, contiguous and not initialised."""
        count = math.prod(shape)
        if self._device.type != "cuda" or count > self._size:
            return torch.empty(shape, dtype=self._dtype, device=self._device)
        if self._slab is None or self._at + count > len(self._slab):
            self._slab = None  # if it is all free, it is the next one
            with torch.inference_mode(False):  # as above
                self._slab = torch.empty(self._size, dtype=self._dtype, device=self._device)
            self._at = 0
        start, self._at = self._at, self._at + count
        return self._slab[start : start + count].view(shape)
