"""Prompts as the product's cache has them after an edit: old rows turned, a few computed anew.

An edited sample lies in a batch as three pieces. The *fresh* one is the prompt as it is now with
its middle, an ordinary sample. The *old* one is the prompt as it was before the edit: its keys and
values are what the cache holds. The *anew* one has the rows that the engine computes after the edit
under the policy "turn": tokens that no old row serves (`prompt.edit_plan.match_rows`), the cursor's
row, and the middle. In every layer these see the old rows, their keys rotated to where their tokens
are now, and each other, in the order of the new prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyturn.engine.prompt.edit_plan import match_rows
from keyturn.engine.prompt.layout import SegmentKey

from .layouts import MAX_TOKENS

Ints = NDArray[np.int64]
MAX_TURNED = 128  # edited samples of a batch


class Edit(NamedTuple):
    """What an edited sample has besides its tokens and classes.

    Attributes:
        old: (O,) tokens of the prompt before the edit.
        sources: (F,) for each of the sample's tokens the old row that serves it; -1: computed anew.
        cursor: the last token of the prompt.
    """

    old: NDArray[np.uint16]
    sources: NDArray[np.int16]
    cursor: int

    @property
    def num_anew(self) -> int:
        """How many rows are computed anew."""
        return int((self.sources < 0).sum())


def old_rows(
    old: Mapping[SegmentKey, Sequence[int]], new: Mapping[SegmentKey, Sequence[int]]
) -> Ints:
    """Return for each token of the new prompt the old row that serves it, -1 if none does.

    Args:
        old: tokens by segment of the layout, in order, before the edit.
        new: likewise, after it.
    """
    found = np.full(sum(map(len, new.values())), -1, np.int64)
    arrays = [{k: np.array(t, np.int64) for k, t in part.items()} for part in (old, new)]
    for source, at, length in match_rows(*arrays):
        found[at : at + length] = np.arange(source, source + length)
    found[-1] = -1  # the cursor's row: what comes next is read off it
    return found


@dataclass
class Turned:
    """Rows of a batch that see a turned cache, all of fixed shapes.

    Attributes:
        gather: (G,) int64, rows of the batch in the order of each edited prompt.
        positions: (G,) int64, where they are in it.
        bounds: (MAX_TURNED + 1 + pieces of padding,) int32, where each begins among the gathered.
        source: (N,) int64, for each row of the batch which attention it takes: its own number, or
            N and more for a gathered row's.
        rows: (P,) int64, rows over the turned cache whose next token is a middle's; the selected
            places of the batch begin with the same rows over a fresh one.
        weights: (P,) float32 of sum 1, or all 0 if there are none.
    """

    gather: Tensor
    positions: Tensor
    bounds: Tensor
    source: Tensor
    rows: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Turned:
        """Return it on a device; a copy to a GPU does not wait."""
        pins = device.type == "cuda"
        moved = [getattr(self, field.name) for field in fields(self)]
        moved = [(t.pin_memory() if pins else t).to(device, non_blocking=True) for t in moved]
        return Turned(*moved)


class Places(NamedTuple):
    """Where the pieces of an edited sample begin in a batch."""

    fresh: int
    old: int
    anew: int


def turn(
    edits: Sequence[tuple[Edit, Places]], size: int, room: int, pairs: Ints, weights: NDArray
) -> Turned:
    """Return the turned rows of a batch.

    Args:
        edits: the edited samples and where they lie.
        size: N, rows of the batch.
        room: G, rows to be gathered.
        pairs: (P, 2) rows over the fresh and the turned cache.
        weights: (P,) float32.
    """
    gather, positions = np.zeros(room, np.int64), np.zeros(room, np.int64)
    bounds = np.full(MAX_TURNED + 1 + -(-room // MAX_TOKENS), room, np.int32)
    source = np.arange(size)
    at = 0
    for number, (edit, places) in enumerate(edits):
        bounds[number] = at
        end = at + len(edit.sources)
        anew = np.flatnonzero(edit.sources < 0)
        rows = edit.sources.astype(np.int64) + places.old
        rows[anew] = places.anew + np.arange(len(anew))
        gather[at:end], positions[at:end] = rows, np.arange(end - at)
        source[rows[anew]] = size + at + anew
        at = end
    padding = np.arange(at, room, MAX_TOKENS)
    bounds[len(edits) : len(edits) + len(padding)] = padding
    arrays = (gather, positions, bounds, source, pairs[:, 1].copy(), weights)
    return Turned(*map(torch.from_numpy, arrays))
