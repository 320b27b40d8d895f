"""Batches of packed samples out of the shards of prepare.py, made ahead of time by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fim import FIRST, LAST, LINE_START, MIDDLE, NONE, OTHER, SEES_SUFFIX
from model import MAX_TOKENS
from torch import Tensor

MAX_SAMPLES = 896  # in a batch
OTHER_WEIGHT = 0.35  # of a target that is no middle
CLASS_WEIGHTS = np.zeros(7, np.float32)
CLASS_WEIGHTS[[OTHER, SEES_SUFFIX]] = OTHER_WEIGHT
CLASS_WEIGHTS[[MIDDLE, FIRST, LAST, LINE_START]] = 1.0, 1.5, 3.0, 2.0
MIDDLE_CLASSES = (MIDDLE, FIRST, LAST, LINE_START)


@dataclass
class Batch:
    """One GPU's tokens of a step; the head sees the `selected` positions, middles first."""

    token_ids: Tensor  # (N,)
    positions: Tensor  # (N,)
    bounds: Tensor  # (MAX_SAMPLES + 1,) int32, where samples begin
    selected: Tensor  # (K,)
    targets: Tensor  # (K,)
    weights: Tensor  # (K,), sum 1
    num_middle: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""

        def move(t: Tensor) -> Tensor:
            return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t

        fields = (
            self.token_ids,
            self.positions,
            self.bounds,
            self.selected,
            self.targets,
            self.weights,
        )
        return Batch(*map(move, fields), self.num_middle)


def pack(
    tokens: list[np.ndarray],
    classes: list[np.ndarray],
    size: int,
    num_head: int,
    rng: np.random.Generator,
) -> Batch:
    """Lay samples end to end in `size` positions and choose `num_head` of them for the head."""
    lengths = np.array([len(t) for t in tokens])
    used = int(lengths.sum())
    ids, kinds = np.zeros(size, np.int64), np.zeros(size + 1, np.uint8)
    ids[:used], kinds[:used] = np.concatenate(tokens), np.concatenate(classes)
    ends = np.cumsum(lengths)
    begins = np.repeat(np.concatenate([[0], ends]), np.concatenate([lengths, [size - used]]))
    positions = np.minimum(np.arange(size) - begins, MAX_TOKENS - 1)
    bounds = np.full(MAX_SAMPLES + 1, size, np.int32)
    bounds[0] = 0
    bounds[1 : len(ends) + 1] = ends
    padding = np.arange(used, size, MAX_TOKENS)  # cut too: no piece longer than attention is told
    bounds[len(ends) : len(ends) + len(padding)] = padding
    following = kinds[1:].copy()  # class of the next token
    following[ends - 1] = NONE
    middle = np.flatnonzero(np.isin(following, MIDDLE_CLASSES))
    rng.shuffle(middle)
    other = np.flatnonzero((following == OTHER) | (following == SEES_SUFFIX))
    room = max(0, num_head - len(middle))
    if len(other) > room:  # text that sees the suffix is drawn twice as often
        key = rng.random(len(other)) * np.where(following[other] == SEES_SUFFIX, 1.0, 2.0)
        other = other[np.argpartition(key, room)[:room]] if room else other[:0]
    selected = np.concatenate([middle[:num_head], other])
    weights = CLASS_WEIGHTS[following[selected]]
    if (missing := num_head - len(selected)) > 0:
        selected = np.concatenate([selected, np.zeros(missing, np.int64)])
        weights = np.concatenate([weights, np.zeros(missing, np.float32)])
    targets = ids[np.minimum(selected + 1, size - 1)]
    arrays = (ids, positions, bounds, selected, targets, weights / max(weights.sum(), 1e-9))
    return Batch(*map(torch.from_numpy, arrays), min(len(middle), num_head))


def read_shards(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return tokens, classes and the per-sample arrays (with `offset`) of some shards as one."""
    shards = [np.load(p) for p in paths]
    tokens, classes = (np.concatenate([s[name] for s in shards]) for name in ("tokens", "classes"))
    names = ("length", "kind", "layout", "language", "reserved")
    samples = {name: np.concatenate([s[name] for s in shards]) for name in names}
    samples["offset"] = np.concatenate([[0], np.cumsum(samples["length"], dtype=np.int64)[:-1]])
    return tokens, classes, samples


class Stream:
    """Endless batches for one rank out of FOLDER.

    Shards are taken in the order of `passes` (groups of pass numbers whose shards interleave), as
    they appear; a late maker is waited for, then an earlier shard is taken again. Samples are
    shuffled in a pool of a few shards.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        num_head: int,
        device: torch.device,
        passes: list[tuple[list[int], int]],
        rank: int = 0,
        world: int = 1,
        ahead: int = 6,
        seed: int = 0,
    ) -> None:
        """Start the thread; `size` tokens a batch, `num_head` of them seen by the head."""
        self.folder, self.size, self.num_head, self.device = folder, size, num_head, device
        self.order = self._names(passes, rank, world)
        self.rng = np.random.default_rng([seed, rank])
        self.waited_s, self.num_shards = 0.0, 0
        self.tokens, self.classes = np.empty(0, np.uint16), np.empty(0, np.uint8)
        self.offset, self.length = np.empty(0, np.int64), np.empty(0, np.int32)
        self.left: list[int] = []
        self.queue: queue.Queue[Batch] = queue.Queue(ahead)
        threading.Thread(target=self._run, daemon=True).start()

    def _names(self, passes: list[tuple[list[int], int]], rank: int, world: int) -> Iterator[Path]:
        while True:
            for numbers, units in passes:
                for unit in range(units):
                    for k, number in enumerate(numbers):
                        if (unit * len(numbers) + k) % world == rank:
                            yield self.folder / f"p{number:02d}_u{unit:03d}.npz"

    def _next_shard(self) -> Path:
        path, started = next(self.order), time.time()
        while not path.exists():
            time.sleep(0.1)
            made = sorted(self.folder.glob("p*.npz"))
            if time.time() - started > (20 if made else 600):
                path = made[self.rng.integers(len(made))]
        self.waited_s += time.time() - started
        self.num_shards += 1
        return path

    def _refill(self) -> None:
        """Keep what is left of the pool and add three shards."""
        tokens, classes, samples = read_shards([self._next_shard() for _ in range(3)])
        keep = [slice(self.offset[i], self.offset[i] + self.length[i]) for i in self.left]
        self.tokens = np.concatenate([tokens, *(self.tokens[s] for s in keep)])
        self.classes = np.concatenate([classes, *(self.classes[s] for s in keep)])
        self.length = np.concatenate([samples["length"], self.length[self.left]])
        self.offset = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)[:-1]])
        self.left = self.rng.permutation(len(self.length)).tolist()

    def _make(self) -> Batch:
        room, picked, skipped = self.size, [], []
        while room > 16 and len(skipped) < 64 and len(picked) < MAX_SAMPLES - 40:
            if len(self.left) < 200:
                self.left += skipped
                skipped = []
                self._refill()
            i = self.left.pop()
            if self.length[i] <= room:
                picked.append(slice(self.offset[i], self.offset[i] + self.length[i]))
                picked[-1] = self.tokens[picked[-1]], self.classes[picked[-1]]
                room -= int(self.length[i])
            else:
                skipped.append(i)
        self.left += skipped
        return pack(
            [p[0] for p in picked], [p[1] for p in picked], self.size, self.num_head, self.rng
        )

    def _run(self) -> None:
        while True:
            self.queue.put(self._make())

    def next(self) -> Batch:
        """Return the next batch, on the device."""
        return self.queue.get().to(self.device)


def held_batches(
    folder: Path, size: int, num_head: int, most: int, rank: int = 0, world: int = 1
) -> list[Batch]:
    """Return this rank's `most` batches of held-out samples, always the same ones."""
    tokens, classes, samples = read_shards(sorted(folder.glob("p*.npz")))
    groups, current, room = [], [], size
    for i in np.random.default_rng(7).permutation(len(samples["length"])):
        if samples["length"][i] > room or len(current) > MAX_SAMPLES - 40:
            groups.append(current)
            current, room = [], size
        current.append(slice(samples["offset"][i], samples["offset"][i] + samples["length"][i]))
        room -= samples["length"][i]
    mine = groups[: most * world][rank::world]
    rng = np.random.default_rng(1)
    return [
        pack([tokens[s] for s in g], [classes[s] for s in g], size, num_head, rng) for g in mine
    ]
