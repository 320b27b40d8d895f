"""A product beside another: what a low-rank adapter adds to a projection that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .linear import Linear


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update of a matrix (N, K) in two factors.

    Attributes:
        down: (R, K).
        up: (N, R), with the adapter's scale in it.

    Source: LoRA, arXiv 2106.09685, section 4.1; the scale of rsLoRA, arXiv 2312.03732.
    """

    down: Tensor
    up: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        """Return it elsewhere and in another dtype."""
        return LowRank(self.down.to(device, dtype), self.up.to(device, dtype))


class AdaptedLinear:
    """A projection and a low-rank update beside it; attributes as in `Linear`."""

    def __init__(self, base: Linear, update: LowRank) -> None:
        """Take the projection, which is only called, and the update, in the activations' dtype."""
        self.base, self._update = base, update
        self.num_out, self.num_in = base.num_out, base.num_in

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        product = self.base(x, out_dtype)
        added = functional.linear(functional.linear(x, self._update.down), self._update.up)
        return product + added.to(product.dtype)


def adapted(linear: Linear, update: LowRank | None) -> Linear:
    """Return a projection with another update beside it, or with none."""
    base = linear.base if isinstance(linear, AdaptedLinear) else linear
    return base if update is None else AdaptedLinear(base, update)


def side_by_side(updates: list[LowRank | None], rows: list[int]) -> LowRank:
    """Return one update of matrices that lie one below the other and share their input.

    Args:
        updates: of each of them, None where it has none; not all.
        rows: (N,) of each.
    """
    given = [update for update in updates if update is not None]
    down = torch.cat([update.down for update in given])
    up = down.new_zeros(sum(rows), len(down))
    row = column = 0
    for update, count in zip(updates, rows, strict=True):
        if update is not None:
            width = len(update.down)
            up[row : row + count, column : column + width] = update.up
            column += width
        row += count
    return LowRank(down, up)
