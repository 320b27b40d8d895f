"""Drafts verified with early exits: tokens leave the layers where a controller is sure of them.

A looked up draft goes through the layers together with the token before it. Rows that are sure
leave, drafts are accepted against what they say, and only the rest goes on to the end.

The row of a token that has left lacks keys and values of deeper layers. When another token comes so
deep, the rows before it are made up: they go along in its pass, which costs less than a pass of
their own, as the weights are read once. What is filled in from the state that a token left with, as
SEC (arXiv 2401.09964, section 4) and CALM (arXiv 2207.07061, section 3.2) do, is far from what the
layers would have given: so it is left to the deepest layers, and to the rows behind the last token
that went deep. Where an exit has learnt what to fill in (`exits/fill.py`), nothing is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ..exits.controller import Exits
from ..exits.fill import Fill
from ..model.decoder import Check
from ..model.kv_cache import KVCache, Slots
from ..model.layers import go_on
from .partial_steps import PartialSteps
from .speculation import MOST_ROWS, Decoding

# Where nothing is made up a row that leaves early costs little, and a wrong one spares nothing: so
# likely is a looked up token to come true.
_LEAST_LIKELY = 0.6


@dataclass(slots=True, eq=False)
class _Row:
    """A row on its way through the layers.

    Attributes:
        position: of its token.
        reached: layers that it has keys and values of.
        hidden: (hidden_size,) its state there.
        fill: what fills in the layers behind them; None: it is still going, or nothing was learnt.
    """

    position: int
    reached: int
    hidden: Tensor
    fill: Fill | None = None


class FastSteps(PartialSteps):
    """Decode steps over drafts, through as many layers as the exits ask."""

    def __init__(
        self, decoding: Decoding, *, exits: Exits, num_forced: int, token_bytes: Sequence[bytes]
    ) -> None:
        """Take nothing yet.

        Args:
            decoding: the completion.
            exits: of the model.
            num_forced: bytes that are bound to be written first: an exit does not know all tokens
                that they may need, and none leaves before them.
            token_bytes: bytes of each token.
        """
        super().__init__(decoding, min([exits.last, *(point.depth for point in exits.points)]))
        if any(exits.fill(point) is not None for point in exits.points):
            self._least_likely = _LEAST_LIKELY
        self._exits, self._num_forced, self._token_bytes = exits, num_forced, token_bytes
        self._skipped = bytes([SKIP_ATTENTION | SKIP_MLP]) * self._num_layers
        self._left: list[_Row] = []  # rows that lack keys and values

    def pause(self) -> None:
        """Drop what was drafted and not taken, and fill in what rows lack."""
        super().pause()
        self._fill(self._num_layers)

    def _drop_ahead(self) -> None:
        super()._drop_ahead()
        end = self._prompt.num_tokens + len(self._taken)
        self._left = [row for row in self._left if row.position < end]

    def _through(
        self,
        token_ids: Sequence[int],
        start: int,
        hidden: Tensor | None,
        cache: KVCache,
        slots: Slots,
    ) -> tuple[list[Tensor | None], Slots]:
        states = torch.empty(len(token_ids), 0) if hidden is None else hidden
        exits, decoder = self._exits, self._prompt.decoder
        positions = cache.positions[slots].tolist()
        rows = [_Row(at, start, state) for at, state in zip(positions, states, strict=True)]
        logits: list[Tensor | None] = [None] * len(rows)
        written = [*self._taken, token_ids[0]]
        may_leave = sum(len(self._token_bytes[each]) for each in written) >= self._num_forced
        going = list(range(len(rows)))
        for point in exits.points if may_leave else ():
            self._deepen([rows[at] for at in going], point.depth)
            arrived, going = going, []
            found = exits.logits(point, torch.stack([rows[at].hidden for at in arrived]))
            for at, after in zip(arrived, found, strict=True):
                if after is None:
                    going.append(at)
                    continue
                logits[at] = after
                rows[at].fill = exits.fill(point)
                self._left.append(rows[at])
                if at + 1 < len(rows) and int(after.argmax()) != token_ids[at + 1]:
                    break  # what was drafted behind it is wrong
            if not going:
                return logits, slots[:0]
        self._deepen([rows[at] for at in going], exits.last)
        if exits.last < self._num_layers:
            self._left += [rows[at] for at in going]
        last = decoder.logits(torch.stack([rows[at].hidden for at in going]))
        for at, after in zip(going, last, strict=True):
            logits[at] = after
        return logits, slots[going if exits.last == self._num_layers else []]

    def _deepen(self, rows: list[_Row], until: int) -> None:
        """Take rows further that have come equally far; others are made up or filled in so far."""
        while (start := rows[0].reached) < until:
            self._fill_in([each for each in self._left if each.reached == start])
            others = [each for each in self._left if each.reached == start]
            ahead = [each.reached for each in self._left if each.reached > start]
            end = min([until, *ahead])
            made_up = self._exits.made_up
            if start < made_up:
                end = min(end, made_up)
            elif others:
                self._fill(end)
                others = []
            self._run([*others, *rows], range(start, end))

    def _run(self, rows: list[_Row], layers: range) -> None:
        rows = sorted(rows, key=lambda row: row.position)
        for at in range(0, len(rows), MOST_ROWS):
            some = rows[at : at + MOST_ROWS]
            hidden = torch.stack([row.hidden for row in some]) if layers.start else None
            self._forward(some, layers, hidden, None, self._check)
            self._num_layer_runs += len(some) * len(layers)

    def _fill(self, until: int) -> None:
        """Make keys and values that rows lack below a layer out of the state they are in."""
        self._fill_in([row for row in self._left if row.reached < until])
        while lacking := [row for row in self._left if row.reached < until]:
            start = min(row.reached for row in lacking)
            some = [row for row in lacking if row.reached == start][:MOST_ROWS]
            end = min([until, *(row.reached for row in lacking if row.reached > start)])
            hidden = torch.stack([row.hidden for row in some])
            self._forward(some, range(start, end), hidden, self._skipped, go_on)
        if until == self._num_layers:
            self._left.clear()

    def _fill_in(self, rows: list[_Row]) -> None:
        """Write what was learnt to be filled in for rows; they lack nothing then."""
        for fill in {row.fill for row in rows}:
            if fill is None:
                continue
            some = [row for row in rows if row.fill is fill]
            hidden = torch.stack([row.hidden for row in some])
            fill(self._prompt.rows, self._slots(some), hidden)
            self._left = [row for row in self._left if row not in some]

    def _slots(self, rows: list[_Row]) -> Slots:
        cache = self._prompt.rows
        order = np.argsort(cache.positions)
        wanted = np.array([row.position for row in rows])
        return order[np.searchsorted(cache.positions, wanted, sorter=order)]

    def _forward(
        self,
        rows: list[_Row],
        layers: range,
        hidden: Tensor | None,
        skipped: bytes | None,
        check: Check,
    ) -> None:
        states = self._prompt.decoder.forward(
            self._prompt.rows,
            self._slots(rows),
            check,
            layers=layers,
            hidden=hidden,
            skipped=skipped,
        )
        for row, state in zip(rows, states.clone(), strict=True):
            row.reached, row.hidden = layers.stop, state
