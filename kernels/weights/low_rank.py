"""A product beside another: what a low-rank adapter adds to a projection that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class FusedUpdate:
    """Updates of matrices that lie one below the other and share their input.

    Attributes:
        down: (R, K): their first factors, one below the other.
        ups: (N, rank) of each matrix; (N, 0) of one that has no update. The ranks add up to R.
    """

    down: Tensor
    ups: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        updates: Sequence[LowRank | None],
        rows: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> FusedUpdate | None:
        """Return the updates as one, on a device and in a dtype; None if there are none.

        Args:
            updates: of each of the matrices, None where it has none.
            rows: (N,) of each.
            device: where the product is.
            dtype: of the activations.
        """
        downs = [update.down for update in updates if update is not None]
        if not downs:
            return None
        ups = (
            downs[0].new_zeros(count, 0) if update is None else update.up
            for update, count in zip(updates, rows, strict=True)
        )
        return cls(
            torch.cat(downs).to(device, dtype),
            tuple(up.to(device, dtype).contiguous() for up in ups),
        )


class AdaptedLinear:
    """A projection and low-rank updates beside it; attributes as in `Linear`."""

    def __init__(self, base: Linear, update: FusedUpdate) -> None:
        """Take the projection, which is only called, and the update, in the activations' dtype."""
        self.base, self._update = base, update
        self.num_out, self.num_in = base.num_out, base.num_in

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        product, update = self.base(x, out_dtype), self._update
        shrunk = functional.linear(x, update.down).split([up.shape[1] for up in update.ups], -1)
        for out, part, up in zip(
            product.split([len(up) for up in update.ups], -1), shrunk, update.ups, strict=True
        ):
            if up.shape[1]:
                out += functional.linear(part, up).to(product.dtype)
        return product


def adapted(linear: Linear, update: FusedUpdate | None) -> Linear:
    """Return a projection with another update beside it, or with none."""
    base = linear.base if isinstance(linear, AdaptedLinear) else linear
    return base if update is None else AdaptedLinear(base, update)
