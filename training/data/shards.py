"""Shards of prepare.py, read as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TokensAndClasses = tuple[NDArray[np.uint16], NDArray[np.uint8]]


@dataclass
class Shards:
    """Samples end to end.

    Attributes:
        tokens: (N,) uint16.
        classes: (N,) uint8.
        length: (S,) int32, tokens of each sample.
        offset: (S,) int64, where each begins.
        columns: "kind", "layout", "language", "reserved" to (S,) arrays.
    """

    tokens: NDArray[np.uint16]
    classes: NDArray[np.uint8]
    length: NDArray[np.int32]
    offset: NDArray[np.int64]
    columns: dict[str, NDArray]

    def sample(self, number: int) -> TokensAndClasses:
        """Return a sample's tokens and classes."""
        place = slice(self.offset[number], self.offset[number] + self.length[number])
        return self.tokens[place], self.classes[place]


def read_shards(paths: list[Path]) -> Shards:
    """Read some shards as one.

    Raises:
        FileNotFoundError: there are none.
    """
    if not paths:
        raise FileNotFoundError("no shards (p*.npz) there; make them with training.prepare")
    shards = [np.load(path) for path in paths]

    def joined(name: str) -> NDArray:
        return np.concatenate([shard[name] for shard in shards])

    length = joined("length")
    columns = {name: joined(name) for name in ("kind", "layout", "language", "reserved")}
    return Shards(joined("tokens"), joined("classes"), length, offsets(length), columns)


def offsets(length: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return where samples of these lengths begin, laid end to end."""
    return np.concatenate([[0], np.cumsum(length, dtype=np.int64)[:-1]])
