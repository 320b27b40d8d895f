"""Early exit: whether a token has been through enough layers, read off its state.

SEC (arXiv 2401.09964, section 4) asks one linear classifier at every layer whether to exit, to go
on or to stop. Here each exit has its own, and it is told as well how sure a head over the commonest
tokens is: a thirtieth of the model, and what tells a final token best. CALM (arXiv 2207.07061) goes
by such sureness alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.decoder import Decoder
from .fill import Fill, normalised


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """One exit.

    Attributes:
        depth: layers that a token has been through there.
        weights: (2, hidden_size + 2) float32, over what `features` returns: for the log odds that
            the likeliest token is the one after all layers, and that this one is wrong.
        bias: (2,) float32.
        exit_at: the least probability with which a token leaves.
        fill: what is filled in for a token that left, as for `Fill`; None: nothing was learnt, the
            layers themselves make it of the state.
    """

    depth: int
    weights: Tensor
    bias: Tensor
    exit_at: float
    fill: tuple[Tensor, Tensor] | None = None

    def odds(self, hidden: Tensor, sure: Tensor) -> Tensor:
        """Return the (n, 2) log odds for rows; arguments as for `features`."""
        return torch.addmm(self.bias, features(hidden, sure), self.weights.t())


@dataclass(frozen=True, slots=True)
class ExitRule:
    """What a model's tokens are decided by.

    Attributes:
        points: exits, in order of depth.
        token_ids: (m,) int64, the tokens that an exit can write, ascending.
        last: layers that a token goes through which leaves nowhere.
        made_up: layers that a row which has left is put through after all when a later token comes
            so deep; deeper ones are filled in from its state. Where an exit has learnt to fill in,
            nothing is made up.
    """

    points: tuple[ExitPoint, ...]
    token_ids: Tensor
    last: int
    made_up: int


def sureness(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return of (n, m) logits the likeliest column (n,), and how sure it is, (n, 2).

    Natural logarithms: of its probability, and of how far it is ahead of the next.
    """
    two = logits.topk(2)
    log_probability = two.values[:, 0] - logits.logsumexp(-1)
    return two.indices[:, 0], torch.stack(
        [log_probability, two.values[:, 0] - two.values[:, 1]], -1
    )


def features(hidden: Tensor, sure: Tensor) -> Tensor:
    """Return what a classifier looks at, (n, hidden_size + 2) float32.

    Args:
        hidden: (n, hidden_size) states after some layer.
        sure: (n, 2), as `sureness` returns it.
    """
    log_probability = sure[:, :1].clamp(-14, -1e-6)
    log_odds = log_probability - torch.log1p(-log_probability.exp())
    # Of about the size of the state's own entries.
    return torch.cat([normalised(hidden), log_odds / 4, sure[:, 1:] / 4], -1)


class Exits:
    """A rule bound to a model's heads."""

    def __init__(self, rule: ExitRule, decoder: Decoder) -> None:
        """Copy the rows of the head that exits need."""
        self.points: Sequence[ExitPoint] = rule.points
        self.last, self.made_up = rule.last, rule.made_up
        self._token_ids = rule.token_ids.to(decoder.device)
        self._head = decoder.head_over(rule.token_ids)
        self._vocab_size = decoder.config.vocab_size
        self._fills = {
            point.depth: Fill(point.depth, *point.fill, decoder.dtype, decoder.device)
            for point in rule.points
            if point.fill is not None
        }

    def fill(self, point: ExitPoint) -> Fill | None:
        """Return what fills in for the rows that leave there; None: nothing was learnt."""
        return self._fills.get(point.depth)

    def logits(self, point: ExitPoint, hidden: Tensor) -> list[Tensor | None]:
        """Return the (vocab_size,) logits of rows that leave here, None for those that go on.

        Args:
            point: the exit that they have come to.
            hidden: (n, hidden_size) their states there.

        Returns:
            float32, -inf for tokens that no exit writes.
        """
        short = self._head(hidden)
        _, sure = sureness(short)
        leaves = point.odds(hidden, sure)[:, 0].sigmoid() >= point.exit_at
        return [
            self._among_all(row) if is_sure else None
            for row, is_sure in zip(short, leaves.tolist(), strict=True)
        ]

    def _among_all(self, row: Tensor) -> Tensor:
        full = row.new_full((self._vocab_size,), float("-inf"))
        full[self._token_ids] = row
        return full
