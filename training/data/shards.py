"""Shards of prepare.py, read as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .turned import Edit

TokensAndClasses = tuple[NDArray[np.uint16], NDArray[np.uint8]]
COLUMNS = ("kind", "layout", "language", "reserved")


@dataclass
class Shards:
    """Samples end to end.

    Attributes:
        tokens: (N,) uint16.
        classes: (N,) uint8.
        length: (S,) int32, tokens of each sample.
        offset: (S,) int64, where each begins.
        columns: "kind", "layout", "language", "reserved" to (S,) arrays.
        edits: of the samples, an edit before which their prompts were computed.
    """

    tokens: NDArray[np.uint16]
    classes: NDArray[np.uint8]
    length: NDArray[np.int32]
    offset: NDArray[np.int64]
    columns: dict[str, NDArray]
    edits: list[Edit | None]

    def sample(self, number: int) -> TokensAndClasses:
        """Return a sample's tokens and classes."""
        place = slice(self.offset[number], self.offset[number] + self.length[number])
        return self.tokens[place], self.classes[place]


def edit_arrays(edits: Sequence[Edit | None]) -> dict[str, NDArray]:
    """Return edits as the arrays of a shard."""
    real = [edit for edit in edits if edit is not None]
    return {
        "old_length": np.array([0 if e is None else len(e.old) for e in edits], np.int32),
        "old": np.concatenate([np.empty(0, np.uint16), *(e.old for e in real)]),
        "sources": np.concatenate([np.empty(0, np.int16), *(e.sources for e in real)]),
        "cursor": np.array([e.cursor for e in real], np.int32),
    }


def read_shards(paths: list[Path]) -> Shards:
    """Read some shards as one.

    Raises:
        FileNotFoundError: there are none.
    """
    if not paths:
        raise FileNotFoundError("no shards (p*.npz) there; make them with training.prepare")
    shards = [dict(np.load(path)) for path in paths]

    def joined(name: str) -> NDArray:
        return np.concatenate([shard[name] for shard in shards])

    length = joined("length")
    columns = {name: joined(name) for name in COLUMNS}
    edits = [edit for shard in shards for edit in _edits(shard)]
    return Shards(joined("tokens"), joined("classes"), length, offsets(length), columns, edits)


def _edits(shard: Mapping[str, NDArray]) -> list[Edit | None]:
    """Return the edits of a shard's samples; of one from before there were any, none."""
    length = shard["length"]
    found: list[Edit | None] = [None] * len(length)
    if "old_length" not in shard:
        return found
    number = at = old_at = 0
    for i in np.flatnonzero(shard["old_length"]).tolist():
        old_end, end = old_at + int(shard["old_length"][i]), at + int(length[i])
        old, sources = shard["old"][old_at:old_end], shard["sources"][at:end]
        found[i] = Edit(old, sources, int(shard["cursor"][number]))
        number, at, old_at = number + 1, end, old_end
    return found


def offsets(length: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return where samples of these lengths begin, laid end to end."""
    return np.concatenate([[0], np.cumsum(length, dtype=np.int64)[:-1]])
