"""Attention of rows that do not see all that lies before them, or whose scores are capped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.attention import many_rows_gpu
from .attention import Ints, Visibility, attend


@dataclass(frozen=True, slots=True)
class Limited:
    """Rows in any order on any device, as `Visibility` says, under a mask of positions.

    A layer of a sliding window keeps the rows that its window has left: a row that moves comes into
    it again.

    Attributes:
        row_positions: (rows,) int64, on the device.
        slot_positions: (slots,) int64, on the device.
        bias: (rows, slots), added to the scores; None where every row sees every slot.
        cap: what a tanh keeps scores below; None: nothing.
    """

    row_positions: Tensor
    slot_positions: Tensor
    bias: Tensor | None
    cap: float | None

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says."""
        used = len(self.slot_positions)
        keys, values = keys[:, :used], values[:, :used]
        if queries.is_cuda and weights is None and self.cap is None:
            return many_rows_gpu.attend_by_position(queries, keys, values, self.bias)
        return attend(queries, keys, values, self.bias, weights, self.cap)


def limited(
    seen: Visibility,
    slots: Ints,
    positions: Ints,
    window: int | None,
    cap: float | None,
    dtype: torch.dtype,
    unseen: Tensor | None = None,
) -> Visibility:
    """Return what rows see of what they would see, through a window and with a cap.

    Args:
        seen: what they see without.
        slots: (rows,) the rows.
        positions: (slots,) of all the cache's rows.
        window: tokens that a row sees at most, its own among them; None: all before it.
        cap: what a tanh keeps scores below; None: nothing.
        dtype: of the queries.
        unseen: (rows, t) bool, on the device, as for `passes.Rows`.

    Returns:
        `seen` itself where none of them makes a difference.
    """
    if window is not None and int(positions[slots].max() - positions.min()) < window:
        window = None
    if window is None and cap is None and unseen is None:
        return seen
    rows, others = seen.row_positions, seen.slot_positions
    bias = many_rows_gpu.position_bias(rows, others, dtype)
    if window is not None:
        bias.masked_fill_(rows[:, None] - others[None, :] >= window, float("-inf"))
    if unseen is not None:
        bias[:, len(others) - unseen.shape[1] :].masked_fill_(unseen, float("-inf"))
    return Limited(rows, others, bias, cap)
