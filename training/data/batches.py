"""Batches: samples packed end to end, and the targets that the head is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layouts import (
    FIRST,
    LAST,
    LINE_START,
    MAX_TOKENS,
    MIDDLE,
    MIDDLE_CLASSES,
    NONE,
    OTHER,
    SEES_SUFFIX,
)
from .shards import TokensAndClasses, read_shards
from .turned import Edit, Places, Turned, turn

MAX_SAMPLES = 896  # in a batch, pieces of padding among them
PADDING_PIECES = 40  # of those
NUM_CLASSES = 7
CLASS_WEIGHTS = np.zeros(NUM_CLASSES, np.float32)
CLASS_WEIGHTS[[OTHER, SEES_SUFFIX]] = 0.35
CLASS_WEIGHTS[[MIDDLE, FIRST, LAST, LINE_START]] = 1.0, 1.5, 3.0, 2.0


@dataclass
class Batch:
    """One GPU's tokens of a step; the head sees the `selected` positions, middles first.

    Attributes:
        token_ids: (N,) int64.
        positions: (N,) int64, within each sample.
        bounds: (MAX_SAMPLES + 1,) int32, where samples begin; N from the last one's end on.
        selected: (K,) int64, places whose next token is a target.
        targets: (K,) int64, the next tokens.
        weights: (K,) float32, of sum 1; 0 for places that only fill up the shape.
        num_middle: how many of the selected have a middle's token as target.
        sample: (K,) int64, the sample that each selected place is of; MAX_SAMPLES where it only
            fills up the shape.
        turned: rows over a cache that an edit has turned; None if there are none.
    """

    token_ids: Tensor
    positions: Tensor
    bounds: Tensor
    selected: Tensor
    targets: Tensor
    weights: Tensor
    num_middle: int
    sample: Tensor
    turned: Turned | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; a copy to a GPU does not wait."""

        def move(t: Tensor) -> Tensor:
            return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t

        return Batch(
            move(self.token_ids),
            move(self.positions),
            move(self.bounds),
            move(self.selected),
            move(self.targets),
            move(self.weights),
            self.num_middle,
            move(self.sample),
            None if self.turned is None else self.turned.to(device),
        )


@dataclass(frozen=True)
class Packing:
    """How samples are laid out in batches.

    Attributes:
        size: positions of a batch; what the samples leave is padding.
        num_head: how many positions the head sees: middles, then text at random.
        room_turned: rows that may be gathered over turned caches; 0 leaves all edits out.
        weights: of the classes of targets.
    """

    size: int
    num_head: int
    room_turned: int = 0
    weights: NDArray[np.float32] = field(default_factory=CLASS_WEIGHTS.copy)

    @property
    def num_pairs(self) -> int:
        """Targets over a turned cache that the head sees at most."""
        return min(self.num_head // 2, max(64, self.room_turned // 8 // 64 * 64))


def pack(
    samples: Sequence[TokensAndClasses],
    packing: Packing,
    rng: np.random.Generator,
    edits: Sequence[Edit | None] = (),
) -> Batch:
    """Lay samples end to end and choose what the head sees.

    Args:
        samples: tokens and classes (see `layouts`) of each.
        packing: how.
        rng: decides what the head sees.
        edits: of the samples, where they are to be computed over a turned cache as well: their old
            prompts and the rows computed anew come behind all samples and have to fit too.
    """
    size = packing.size
    pieces = [tokens for tokens, _ in samples]
    placed = _place_edits(pieces, edits)
    lengths = np.array([len(tokens) for tokens in pieces])
    used = int(lengths.sum())
    ids, kinds = np.zeros(size, np.int64), np.zeros(size + 1, np.uint8)
    ids[:used] = np.concatenate(pieces)
    classes = np.concatenate([classes for _, classes in samples])
    kinds[: len(classes)] = classes
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
    pairs = _pairs(placed, packing, rng)
    selected, weights, num_middle = _choose(following, packing, pairs[:, 0], rng)
    turned = None
    if packing.room_turned:
        of_pairs = np.zeros(packing.num_pairs, np.float32)
        of_pairs[: len(pairs)] = packing.weights[following[pairs[:, 0]]]
        filled = np.zeros((packing.num_pairs, 2), np.int64)
        filled[: len(pairs)] = pairs
        of_pairs /= max(of_pairs.sum(), 1e-9)
        turned = turn(placed, size, packing.room_turned, filled, of_pairs)
    targets = ids[np.minimum(selected + 1, size - 1)]
    sample = np.where(weights > 0, np.searchsorted(ends, selected, "right"), MAX_SAMPLES)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(bounds),
        torch.from_numpy(selected),
        torch.from_numpy(targets),
        torch.from_numpy(weights / max(weights.sum(), 1e-9)),
        num_middle,
        torch.from_numpy(sample),
        turned,
    )


def _place_edits(
    pieces: list[NDArray[np.uint16]], edits: Sequence[Edit | None]
) -> list[tuple[Edit, Places]]:
    """Append old prompts and rows computed anew to the pieces; return where they begin."""
    begins = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
    placed, at = [], int(begins[-1])
    for number, edit in enumerate(edits):
        if edit is not None:
            tokens = pieces[number][edit.sources < 0]
            placed.append((edit, Places(int(begins[number]), at, at + len(edit.old))))
            pieces += [edit.old, tokens]
            at += len(edit.old) + len(tokens)
    return placed


def _pairs(
    placed: list[tuple[Edit, Places]], packing: Packing, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return (P, 2) rows before a middle's token, over the fresh and over the turned cache."""
    found = [np.empty((0, 2), np.int64)]
    for edit, places in placed:
        anew = np.flatnonzero(edit.sources < 0)
        rows = np.flatnonzero(anew >= edit.cursor)[:-1]  # nothing follows the end
        found.append(np.stack([places.fresh + anew[rows], places.anew + rows], 1))
    pairs = np.concatenate(found)
    return rng.permutation(pairs)[: packing.num_pairs]


def _choose(
    following: NDArray[np.uint8],
    packing: Packing,
    first: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Return places, `first` first, their weights, and how many have a middle's token next."""
    num_head = packing.num_head
    middle = np.flatnonzero(np.isin(following, MIDDLE_CLASSES))
    if len(first):
        middle = np.setdiff1d(middle, first, assume_unique=True)
    rng.shuffle(middle)
    middle = np.concatenate([first, middle])
    other = np.flatnonzero((following == OTHER) | (following == SEES_SUFFIX))
    room = max(0, num_head - len(middle))
    if len(other) > room:  # text that sees the suffix is drawn twice as often
        key = rng.random(len(other)) * np.where(following[other] == SEES_SUFFIX, 1.0, 2.0)
        other = other[np.argpartition(key, room)[:room]] if room else other[:0]
    selected = np.concatenate([middle[:num_head], other])
    weights = packing.weights[following[selected]]
    if (missing := num_head - len(selected)) > 0:
        selected = np.concatenate([selected, np.zeros(missing, np.int64)])
        weights = np.concatenate([weights, np.zeros(missing, np.float32)])
    return selected, weights, min(len(middle), num_head)


def held_batches(
    folder: Path, size: int, num_head: int, most: int, rank: int = 0, world: int = 1
) -> list[Batch]:
    """Return a rank's batches of held-out samples, always the same ones, `most` at most."""
    shards = read_shards(sorted(folder.glob("p*.npz")))
    groups: list[list[int]] = []
    current: list[int] = []
    room = size
    for i in np.random.default_rng(7).permutation(len(shards.length)).tolist():
        if shards.length[i] > size:
            continue  # only where batches are tiny, in tests
        if shards.length[i] > room or len(current) > MAX_SAMPLES - PADDING_PIECES:
            groups.append(current)
            current, room = [], size
        current.append(i)
        room -= int(shards.length[i])
    groups = groups or [current]  # fewer samples than a batch holds
    rng = np.random.default_rng(1)
    return [
        pack([*map(shards.sample, group)], Packing(size, num_head), rng)
        for group in groups[: most * world][rank::world]
        if group
    ]
