"""An endless stream of training batches out of a folder of shards, made ahead by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .batches import MAX_SAMPLES, PADDING_PIECES, Batch, pack
from .shards import Shards, offsets, read_shards

Passes = list[tuple[list[int], int]]

_SHARDS_A_POOL = 3
_FEW_SAMPLES = 200  # left in the pool: read more
_LATE_S, _FIRST_S = 20, 600  # how long a shard is waited for, and the first one


def parse_passes(text: str) -> Passes:
    """Parse "0+1:48,2:96" into [([0, 1], 48), ([2], 96)]: interleaved passes, their units."""
    groups = []
    for part in text.split(","):
        numbers, units = part.split(":")
        groups.append(([int(n) for n in numbers.split("+")], int(units)))
    return groups


class Stream:
    """Endless batches for one rank out of a folder of shards.

    Shards are taken in the order of the passes, as they appear; a late maker is waited for, then
    an earlier shard is taken again. Samples are shuffled in a pool of a few shards.

    Attributes:
        waited_s: seconds spent waiting for shards.
        num_shards: how many were taken, those of earlier runs included.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        num_head: int,
        device: torch.device,
        passes: Passes,
        rank: int = 0,
        world: int = 1,
        ahead: int = 6,
        seed: int = 0,
        skip: int = 0,
    ) -> None:
        """Start the thread.

        Args:
            folder: of the shards.
            size: tokens a batch.
            num_head: how many of them the head sees.
            device: where batches go.
            passes: groups of pass numbers whose shards interleave, and the shards of each.
            rank: of this process.
            world: number of processes.
            ahead: batches made in advance.
            seed: of the order of samples.
            skip: shards that an earlier run has taken.
        """
        self.waited_s, self.num_shards = 0.0, skip
        self._folder, self._size, self._num_head, self._device = folder, size, num_head, device
        self._order = self._names(passes, rank, world)
        for _ in range(skip):
            next(self._order)
        self._rng = np.random.default_rng([seed, rank, skip] if skip else [seed, rank])
        self._pool = Shards(
            np.empty(0, np.uint16),
            np.empty(0, np.uint8),
            np.empty(0, np.int32),
            np.empty(0, np.int64),
            {},
        )
        self._left: list[int] = []
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(ahead)
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> Batch:
        """Return the next batch, on the device.

        Raises:
            FileNotFoundError: no shard appeared.
        """
        batch = self._queue.get()
        if isinstance(batch, Exception):
            raise batch
        return batch.to(self._device)

    def _run(self) -> None:
        while True:
            try:
                self._queue.put(self._make())
            except Exception as error:  # it is the caller's
                self._queue.put(error)
                return

    def _make(self) -> Batch:
        room, picked, skipped = self._size, [], []
        while room > 16 and len(skipped) < 64 and len(picked) < MAX_SAMPLES - PADDING_PIECES:
            if len(self._left) < _FEW_SAMPLES:
                self._left += skipped
                skipped = []
                self._refill()
            i = self._left.pop()
            if self._pool.length[i] <= room:
                picked.append(self._pool.sample(i))
                room -= int(self._pool.length[i])
            else:
                skipped.append(i)
        self._left += skipped
        return pack(picked, self._size, self._num_head, self._rng)

    def _refill(self) -> None:
        """Keep what is left of the pool and add some shards."""
        new = read_shards([self._next_shard() for _ in range(_SHARDS_A_POOL)])
        kept = [self._pool.sample(i) for i in self._left]
        length = np.concatenate([new.length, self._pool.length[self._left]])
        self._pool = Shards(
            np.concatenate([new.tokens, *(tokens for tokens, _ in kept)]),
            np.concatenate([new.classes, *(classes for _, classes in kept)]),
            length,
            offsets(length),
            {},
        )
        order = self._rng.permutation(len(length))
        self._left = order[length[order] <= self._size].tolist()

    def _next_shard(self) -> Path:
        path, started = next(self._order), time.time()
        while not path.exists():
            time.sleep(0.1)
            made = sorted(self._folder.glob("p*.npz"))
            if time.time() - started > (_LATE_S if made else _FIRST_S):
                if not made:
                    raise FileNotFoundError(f"{path} and all others are missing; run prepare")
                path = made[self._rng.integers(len(made))]
        self.waited_s += time.time() - started
        self.num_shards += 1
        return path

    def _names(self, passes: Passes, rank: int, world: int) -> Iterator[Path]:
        while True:
            for numbers, units in passes:
                for unit in range(units):
                    for k, number in enumerate(numbers):
                        if (unit * len(numbers) + k) % world == rank:
                            yield self._folder / f"p{number:02d}_u{unit:03d}.npz"
