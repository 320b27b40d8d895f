"""From states and what deeper layers made of them to a map that fills in for those layers.

Reduced-rank regression (Izenman, J. Multivariate Analysis 5, 1975): the least squares map, cut to
the directions of the states that tell most of the keys and values, of each layer alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..exits.fill import with_one
from ..model.decoder import Check
from ..prompt.prompt_cache import PromptCache

# Of the mean square of entries, what is added to all: states have fewer directions than entries.
_RIDGE = 3e-3


class FillFit:
    """Sums over rows, from which a map is made.

    Attributes:
        num_rows: rows that were added.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.num_rows = 0
        self._squares = self._products = self._sums = self._made_squares = torch.zeros(())

    def add(self, hidden: Tensor, made: Tensor) -> None:
        """Take rows into account.

        Args:
            hidden: (n, hidden_size) states at the exit.
            made: (n, 2, layers, m) unrotated keys, and values, of the layers from the exit on.
        """
        looked_at, made = with_one(hidden), made.float()
        self.num_rows += len(hidden)
        self._squares = self._squares + (looked_at.t() @ looked_at).double()
        self._products = self._products + (looked_at.t() @ made.flatten(1)).double()
        self._sums = self._sums + made.sum(0).double()
        self._made_squares = self._made_squares + made.square().sum(0).double()

    def solve(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the factors (rank, hidden_size + 1) and (2 * layers * m, rank) float32."""
        count, num_made = self.num_rows, self._sums.shape[-1]
        ridge = _RIDGE * count * torch.eye(len(self._squares), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self._squares + ridge)
        back = (vectors / values.sqrt()) @ vectors.t()
        # A layer's keys and values count by what they vary, not by their size.
        spread = (self._made_squares / count - (self._sums / count).square()).mean(-1).sqrt()
        scale = spread.clamp_min(1e-6).repeat_interleave(num_made)
        whitened = back @ (self._products / scale)
        directions = torch.linalg.eigh(whitened @ whitened.t()).eigenvectors[:, -rank:]
        reduce = (back @ directions).t()
        expand = (directions.t() @ whitened * scale).t()
        return reduce.float(), expand.float()


def add_rows(
    fits: Sequence[FillFit], depths: Sequence[int], prompt: PromptCache, check: Check
) -> None:
    """Have fits take into account all rows of a prompt, which are put through the layers anew.

    Args:
        fits: of each exit.
        depths: their layers, ascending.
        prompt: its rows are there.
        check: called between layers.
    """
    cache, decoder = prompt.rows, prompt.decoder
    slots = cache.by_position().copy()
    index = torch.from_numpy(slots).to(decoder.device)
    keys, _, values = cache.storage
    hidden = None
    for fit, (start, depth) in zip(fits, pairwise([0, *depths]), strict=True):
        hidden = decoder.forward(cache, slots, check, layers=range(start, depth), hidden=hidden)
        parts = [each[depth:, :, index].permute(2, 0, 1, 3).flatten(2) for each in (keys, values)]
        fit.add(hidden.cpu(), torch.stack(parts, 1).cpu())
