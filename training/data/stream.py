"""An endless stream of training batches out of a folder of shards, made ahead by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .batches import MAX_SAMPLES, PADDING_PIECES, Batch, Packing, pack
from .shards import TokensAndClasses, read_shards
from .turned import MAX_TURNED, Edit

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
        packing: Packing,
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
            packing: how batches are laid out.
            device: where batches go.
            passes: groups of pass numbers whose shards interleave, and the shards of each.
            rank: of this process.
            world: number of processes.
            ahead: batches made in advance.
            seed: of the order of samples.
            skip: shards that an earlier run has taken.
        """
        self.waited_s, self.num_shards = 0.0, skip
        self._folder, self._packing, self._device = folder, packing, device
        self._order = self._names(passes, rank, world)
        for _ in range(skip):
            next(self._order)
        self._rng = np.random.default_rng([seed, rank, skip] if skip else [seed, rank])
        self._pool: list[tuple[TokensAndClasses, Edit | None]] = []
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
        room, room_turned = self._packing.size, self._packing.room_turned
        picked: list[TokensAndClasses] = []
        edits: list[Edit | None] = []
        skipped, num_pieces = [], 0
        while room > 16 and len(skipped) < 64 and num_pieces < MAX_SAMPLES - PADDING_PIECES:
            if len(self._pool) < _FEW_SAMPLES:
                self._pool += skipped
                skipped = []
                self._refill()
            sample, edit = self._pool.pop()
            length, extra = len(sample[0]), 0
            if edit is not None:
                extra = len(edit.old) + edit.num_anew
                fits = length <= room_turned and length + extra <= room
                if not fits or sum(e is not None for e in edits) == MAX_TURNED:
                    edit, extra = None, 0
            if length <= room:
                picked.append(sample)
                edits.append(edit)
                room -= length + extra
                room_turned -= 0 if edit is None else length
                num_pieces += 1 if edit is None else 3
            else:
                skipped.append((sample, edit))
        self._pool += skipped
        return pack(picked, self._packing, self._rng, edits)

    def _refill(self) -> None:
        """Keep what is left of the pool and add some shards."""
        new = read_shards([self._next_shard() for _ in range(_SHARDS_A_POOL)])
        fits = np.flatnonzero(new.length <= self._packing.size).tolist()
        pool = [(new.sample(i), new.edits[i]) for i in fits] + self._pool
        self._pool = [pool[i] for i in self._rng.permutation(len(pool)).tolist()]

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
