"""Rows of several continuations of one prompt: a tree, of which every branch takes a step at once.

The branches' rows lie side by side behind the prompt's, several at one position. A row sees the
prompt's rows and those on its own way from there; the mask for that is the tree attention of
SpecInfer (arXiv 2305.09781, section 4.2), and the weights are read once for all rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.decoder import Check
from ..prompt.edit_plan import common_prefix
from ..wire.errors import ContextTooLong
from .decoding_cache import DecodingCache


@dataclass(slots=True)
class Branch:
    """One continuation.

    Attributes:
        slots: its rows behind the prompt, in order of position; the first ones may be another's.
    """

    slots: list[int]


class _Aside(NamedTuple):
    """Rows that were taken out of the cache: what `KVCache.insert` takes, and records of theirs."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    records: dict[str, NDArray]
    rows: Tensor


class Branches:
    """Continuations that branch off the first one, while they are computed together.

    Rows of the others are taken away again in `close`; of the first they stay. Until then nothing
    else may be asked of the cache.

    Attributes:
        first: the continuation whose rows are there.
    """

    def __init__(self, prompt: DecodingCache, check: Check, layers: range) -> None:
        """Begin with the rows that were generated after the prompt.

        Args:
            prompt: the prompt's rows, and those of the first continuation.
            check: called between layers.
            layers: those that rows go through.
        """
        self._prompt, self._check, self._layers = prompt, check, layers
        cache = prompt.rows
        generated = np.flatnonzero(cache.positions >= prompt.num_tokens)
        in_order = generated[np.argsort(cache.positions[generated])]
        self.first = Branch(in_order.tolist())
        self._start = cache.num_rows - len(generated)
        self._aside: _Aside | None = None
        self._state = cache.num_fresh, cache.generation

    def fork(self, num_kept: int) -> Branch:
        """Begin another continuation behind the first tokens of the first one."""
        return Branch(self.first.slots[:num_kept])

    def step(self, tokens: Sequence[tuple[Branch, int]]) -> Tensor:
        """Take one more token in each of n branches; return the (n, vocab_size) logits after.

        Raises:
            ContextTooLong: the cache is full; nothing was changed.
        """
        prompt, count = self._prompt, len(tokens)
        branches = [branch for branch, _ in tokens]
        token_ids = np.array([token_id for _, token_id in tokens], dtype=np.int64)
        if prompt.room < count:
            raise ContextTooLong(f"{count} more rows do not fit the cache; lower max_tokens")
        positions = prompt.num_tokens + np.array([len(branch.slots) for branch in branches])
        with prompt.appended(token_ids, positions) as slots:
            unseen = torch.ones(count, prompt.num_rows - self._start, dtype=torch.bool)
            for at, (branch, slot) in enumerate(zip(branches, slots, strict=True)):
                way = torch.tensor([*branch.slots, slot]) - self._start
                unseen[at, way] = False
            hidden = prompt.decoder.forward(
                prompt.rows, slots, self._check, layers=self._layers, unseen=unseen
            )
            logits = prompt.decoder.logits(hidden)
        prompt.count_forwarded(slots)
        for branch, slot in zip(branches, slots.tolist(), strict=True):
            branch.slots.append(slot)
        return logits

    def leave_alone(self, branch: Branch) -> list[int]:
        """Leave the rows of another one only, to be decoded on by itself; return its tokens.

        The first one's are set aside. What is decoded goes with the branch, in `close`.
        """
        cache = self._prompt.rows
        shared = common_prefix(np.array(self.first.slots), np.array(branch.slots))
        aside = np.array(self.first.slots[shared:], dtype=np.int64)
        records = {name: cache.record(name)[aside] for name in ("segment", "provenance")}
        (rows,) = cache.copied(aside)
        self._aside = _Aside(cache.token_ids[aside], cache.positions[aside], records, rows)
        token_ids = cache.token_ids[branch.slots].tolist()
        self._keep(branch)
        return token_ids

    def close(self) -> None:
        """Leave the rows of the first continuation only, as if there had been no other."""
        cache, aside = self._prompt.rows, self._aside
        if aside is None:
            self._keep(self.first)
        else:
            self._prompt.drop_generated(len(self.first.slots) - len(aside.token_ids))
            if len(aside.token_ids):
                slots = cache.insert(aside.token_ids, aside.positions, aside.rows)
                for name, values in aside.records.items():
                    cache.record(name)[slots] = values
        cache.num_fresh, cache.generation = self._state
        if len(self._layers) == self._prompt.decoder.config.num_layers:
            cache.mark_computed(np.arange(self._start, cache.num_rows))

    def _keep(self, branch: Branch) -> None:
        cache = self._prompt.rows
        own = np.zeros(cache.num_rows, dtype=bool)
        own[: self._start] = own[branch.slots] = True
        cache.remove(np.flatnonzero(~own))
