"""Ways to choose the stale rows that are computed again, ours and others', on one cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.prompt import repair
from keyturn.engine.prompt.prompt_cache import PromptCache

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Rows after an edit that "Contiguity, Not Importance" (arXiv 2609.17983) computes again.
_RUN = 32
_EARLY_LAYERS = 2  # CacheBlend's check layer is the second


@dataclass
class Patched:
    """A cache after an edit, and what it should be.

    Attributes:
        prompt: patched, its cursor row computed.
        oracle: a full prefill of the same prompt.
        edited: positions where the edit's tokens stand, the first row after each edit included.
        seed: of the random choice.
    """

    prompt: PromptCache
    oracle: PromptCache
    edited: Ints
    seed: int

    @property
    def rows(self) -> KVCache:
        """The patched rows."""
        return self.prompt.rows

    @property
    def stale(self) -> Ints:
        """Slots that may be chosen, in order of position."""
        everything = np.zeros(self.rows.num_rows, dtype=np.float32)
        return repair.choose(self.rows, everything, self.prompt.num_tokens, self.rows.num_rows)

    @property
    def attention(self) -> Floats:
        """What the cursor's row pays to each row."""
        return self._dependencies.attention

    @property
    def debt(self) -> Floats:
        """What each row owes."""
        return self._dependencies.debt

    @property
    def _dependencies(self):  # noqa: ANN202
        assert self.prompt.dependencies is not None
        return self.prompt.dependencies

    def true_change(self) -> Floats:
        """How far each row's keys and values are from the oracle's, over all layers."""
        rows, oracle = self.rows, self.oracle.rows
        ours, theirs = rows.by_position(), oracle.by_position()
        ours, theirs = (order[: self.prompt.num_tokens] for order in (ours, theirs))
        found = np.zeros(rows.num_rows, dtype=np.float32)
        total = torch.zeros(len(ours), device=rows.storage[0].device)
        for part, other in zip(rows.storage[1:], oracle.storage[1:], strict=True):
            for layer, right in zip(part, other, strict=True):
                a, b = layer[:, ours].float(), right[:, theirs].float()
                total += (a - b).square().sum((0, 2)) / b.square().sum((0, 2)).mean()
        found[ours] = total.sqrt().cpu().numpy()
        return found

    def early_deviation(self, slots: Ints, num_layers: int) -> Floats:
        """How far keys and values of a layer move when rows go through the first layers anew."""
        rows, layer = self.rows, num_layers - 1
        if not len(slots):
            return np.zeros(rows.num_rows, dtype=np.float32)
        before = [part[layer][:, slots].float().clone() for part in rows.storage[1:]]
        decoder = self.prompt.decoder
        decoder.forward(rows, slots, lambda: None, layers=range(num_layers))
        found = np.zeros(rows.num_rows, dtype=np.float32)
        moved = torch.zeros(len(slots), device=before[0].device)
        for part, old in zip(rows.storage[1:], before, strict=True):
            moved += (part[layer][:, slots].float() - old).square().sum((0, 2))
        found[slots] = moved.cpu().numpy()
        return found


def _top(patched: Patched, worth: Floats, count: int) -> Ints:
    return repair.choose(patched.rows, worth, patched.prompt.num_tokens, count)


def ours(patched: Patched, count: int) -> Ints:
    """Choose as the product does."""
    return _top(patched, repair.worth(patched._dependencies), count)


def attention(patched: Patched, count: int) -> Ints:
    """By what the cursor's row pays alone."""
    return _top(patched, patched.attention, count)


def debt(patched: Patched, count: int) -> Ints:
    """By debt alone, as Cache-Craft's attention to other chunks (arXiv 2502.15734)."""
    return _top(patched, patched.debt, count)


def true_change(patched: Patched, count: int) -> Ints:
    """By how far rows are from a full prefill's: nobody can know it."""
    return _top(patched, patched.true_change(), count)


def oracle(patched: Patched, count: int) -> Ints:
    """By √attention × true change."""
    return _top(patched, np.sqrt(patched.attention) * patched.true_change(), count)


def deviation(patched: Patched, count: int) -> Ints:
    """By the deviation in layer 1, all stale rows having gone through two layers (CacheBlend)."""
    return _top(patched, patched.early_deviation(patched.stale, _EARLY_LAYERS), count)


def two_stages(patched: Patched, count: int) -> Ints:
    """By deviation in layer 3 among the three times as many rows with most attention."""
    some = _top(patched, patched.attention, 3 * count)
    return _top(patched, patched.early_deviation(some, 4), count)


def _after_edits(patched: Patched, length: int, count: int) -> Ints:
    """Return up to `count` slots: so many rows after each edit."""
    by_position = {int(at): slot for slot, at in enumerate(patched.rows.positions)}
    stale = set(patched.stale.tolist())
    chosen: list[int] = []
    for step in range(length):
        for at in patched.edited:
            slot = by_position.get(int(at) + step)
            if slot is not None and slot in stale and slot not in chosen and len(chosen) < count:
                chosen.append(slot)
    return np.array(chosen, dtype=np.int64)


def _ordered(patched: Patched, slots: Ints) -> Ints:
    return slots[np.argsort(patched.rows.positions[slots])]


def run_of_32(patched: Patched, count: int) -> Ints:
    """The 32 rows after each edit."""
    return _ordered(patched, _after_edits(patched, _RUN, count))


def whole_run(patched: Patched, count: int) -> Ints:
    """As many rows after each edit as are to be had."""
    return _ordered(patched, _after_edits(patched, patched.rows.num_rows, count))


def _blocks(patched: Patched, worth: Floats, size: int, count: int, taken: set[int]) -> list[int]:
    order = patched.stale
    starts = range(0, len(order), size)
    totals = [(-worth[order[start : start + size]].sum(), start) for start in starts]
    chosen: list[int] = []
    for _, start in sorted(totals):
        block = [slot for slot in order[start : start + size].tolist() if slot not in taken]
        if len(chosen) + len(block) <= count:
            chosen += block
    return chosen


def patchkv(patched: Patched, count: int) -> Ints:
    """Half after the edits, half in blocks of 16 by stored attention (after arXiv 2609.26219)."""
    near = _after_edits(patched, patched.rows.num_rows, count // 2)
    far = _blocks(patched, patched.debt, 16, count - len(near), set(near.tolist()))
    return _ordered(patched, np.array([*near.tolist(), *far], dtype=np.int64))


def blocks_of_8(patched: Patched, count: int) -> Ints:
    """Blocks of eight neighbours by our ranking."""
    worth = repair.worth(patched._dependencies)
    return _ordered(patched, np.array(_blocks(patched, worth, 8, count, set()), dtype=np.int64))


def last(patched: Patched, count: int) -> Ints:
    """The last rows before the cursor."""
    return patched.stale[-count:] if count else patched.stale[:0]


def at_random(patched: Patched, count: int) -> Ints:
    """Any."""
    rng = np.random.default_rng(zlib.crc32(f"{patched.seed}".encode()))
    return _top(patched, rng.random(patched.rows.num_rows, dtype=np.float32), count)


def none(patched: Patched, count: int) -> Ints:
    """Turned alone."""
    return patched.stale[:0]


RANKINGS: dict[str, Callable[[Patched, int], Ints]] = {
    "turn": none,
    "ours": ours,
    "attention": attention,
    "debt": debt,
    "cacheblend": deviation,
    "two_stages": two_stages,
    "run_of_32": run_of_32,
    "whole_run": whole_run,
    "patchkv": patchkv,
    "blocks_of_8": blocks_of_8,
    "last": last,
    "random": at_random,
    "true_change": true_change,
    "oracle": oracle,
}
