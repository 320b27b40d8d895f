"""Decoding with early exits: tokens leave the layers where a controller is sure of them.

The row of a token that has left lacks keys and values of deeper layers. When another token comes so
deep, the rows before it are made up: they go along in its pass, which costs less than a pass of
their own, as the weights are read once. What is filled in from the state that a token left with, as
SEC (arXiv 2401.09964, section 4) and CALM (arXiv 2207.07061, section 3.2) do, is far from what the
layers would have given: so it is left to the deepest layers, and to the rows behind the last token
that went deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ..exits.controller import Exits
from ..model.decoder import Check
from ..model.kv_cache import KVCache, Slots
from ..prompt.prompt_cache import PromptCache
from .steps import common_length

# Rows in one call, as many as the C library takes.
_ROWS_AT_ONCE = 16


@dataclass(slots=True)
class _Left:
    """A row that lacks keys and values from some layer on.

    Attributes:
        position: of its token.
        reached: layers that it has keys and values of.
        hidden: (hidden_size,) its state there.
    """

    position: int
    reached: int
    hidden: Tensor


class FastSteps:
    """A row for each token, through as many layers as the exits ask."""

    def __init__(
        self,
        prompt: PromptCache,
        exits: Exits,
        check: Check,
        *,
        num_forced: int,
        token_bytes: Sequence[bytes],
    ) -> None:
        """Take nothing yet.

        Args:
            prompt: the prompt's rows.
            exits: of its model.
            check: called between layers.
            num_forced: bytes that are bound to be written first: an exit does not know all tokens
                that they may need, and none leaves before them.
            token_bytes: bytes of each token.
        """
        self._prompt, self._exits, self._check = prompt, exits, check
        self._num_forced, self._token_bytes = num_forced, token_bytes
        self._num_layers = prompt.decoder.config.num_layers
        self._skipped = bytes([SKIP_ATTENTION | SKIP_MLP]) * self._num_layers
        self._taken: list[int] = []  # tokens that have rows
        self._left: list[_Left] = []
        self._num_run = self._num_steps = 0

    def __call__(self, token_id: int) -> Tensor:
        """Compute one more token, as `Step` says."""
        self._num_steps += 1
        self._taken.append(token_id)
        try:
            return self._prompt.decode_by(token_id, self._compute)
        except BaseException:
            self._taken.pop()
            raise

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token, what was made up counted with them."""
        return self._num_run / self._num_steps if self._num_steps else float(self._num_layers)

    def branch_off(self, token_ids: Sequence[int]) -> Tensor:
        """Go on from other tokens, as `Steps` says."""
        num_kept = common_length(self._taken, token_ids[:-1])
        self._prompt.drop_generated(num_kept)
        del self._taken[num_kept:]
        end = self._prompt.num_tokens + num_kept
        self._left = [row for row in self._left if row.position < end]
        return [self(token_id) for token_id in token_ids[num_kept:]][-1]

    def end(self) -> None:
        """Fill in what rows lack; a row that was left half computed is gone."""
        there = set(self._prompt.rows.positions.tolist())
        self._left = [row for row in self._left if row.position in there]
        self._fill(self._num_layers)

    def _compute(self, cache: KVCache, slots: Slots) -> tuple[Tensor, bool]:
        exits, decoder = self._exits, self._prompt.decoder
        row = _Left(int(cache.positions[slots[0]]), 0, Tensor())
        num_written = sum(len(self._token_bytes[token_id]) for token_id in self._taken)
        for point in exits.points if num_written >= self._num_forced else ():
            self._deepen(row, point.depth)
            logits = exits.logits(point, row.hidden[None])
            if logits is not None:
                self._left.append(row)
                return logits, False
        self._deepen(row, exits.last)
        if exits.last < self._num_layers:
            self._left.append(row)
        return decoder.logits(row.hidden[None])[0], exits.last == self._num_layers

    def _deepen(self, row: _Left, until: int) -> None:
        """Take a row further; those before it are made up or filled in so far."""
        while row.reached < until:
            start = row.reached
            others = [each for each in self._left if each.reached == start]
            ahead = [each.reached for each in self._left if each.reached > start]
            end = min([until, *ahead])
            made_up = self._exits.made_up
            if start < made_up:
                end = min(end, made_up)
            elif others:
                self._fill(end)
                others = []
            self._run([*others, row], range(start, end))

    def _run(self, rows: list[_Left], layers: range) -> None:
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[at : at + _ROWS_AT_ONCE]
            hidden = torch.stack([row.hidden for row in some]) if layers.start else None
            self._forward(some, layers, hidden, None, self._check)
            self._num_run += len(some) * len(layers)

    def _fill(self, until: int) -> None:
        """Make keys and values that rows lack below a layer out of the state they are in."""
        while lacking := [row for row in self._left if row.reached < until]:
            start = min(row.reached for row in lacking)
            some = [row for row in lacking if row.reached == start][:_ROWS_AT_ONCE]
            end = min([until, *(row.reached for row in lacking if row.reached > start)])
            hidden = torch.stack([row.hidden for row in some])
            self._forward(some, range(start, end), hidden, self._skipped, _go_on)
        if until == self._num_layers:
            self._left.clear()

    def _forward(
        self,
        rows: list[_Left],
        layers: range,
        hidden: Tensor | None,
        skipped: bytes | None,
        check: Check,
    ) -> None:
        cache = self._prompt.rows
        order = np.argsort(cache.positions)
        wanted = np.array([row.position for row in rows])
        slots = order[np.searchsorted(cache.positions, wanted, sorter=order)]
        states = self._prompt.decoder.forward(
            cache, slots, check, layers=layers, hidden=hidden, skipped=skipped
        )
        for row, state in zip(rows, states.clone(), strict=True):
            row.reached, row.hidden = layers.stop, state


def _go_on() -> None:
    pass
