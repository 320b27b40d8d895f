"""Attention of a few rows over the slots of a cache that lie in arbitrary order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...kernels.attention import many_rows_gpu
from ...kernels.attention.many_rows_cpu import CausalOrder, causal_order

# From this many rows on, bf16 matrix products beat the fused CPU kernel (256 rows over 2,048 slots:
# 2.9 ms against 7.5 ms on AVX512-BF16); below it the fused kernel wins.
_MATMUL_ROWS = 16

# Up to this many rows a kernel of our own attends on a GPU: it compares positions by itself.
FEW_ROWS = 64

Ints = NDArray[np.int64]


class Visibility(Protocol):
    """Which slots the rows of one pass see, found once on the host and used in every layer.

    Attributes:
        row_positions: (rows,) int64, on the device.
        slot_positions: (slots,) int64, on the device.
    """

    @property
    def row_positions(self) -> Tensor:
        """Positions of the rows, (rows,) int64, on the device."""
        ...

    @property
    def slot_positions(self) -> Tensor:
        """Positions of all the cache's rows, (slots,) int64, on the device."""
        ...

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend from every row to the slots at its position or before.

        Args:
            queries: (rows, num_heads, head_dim), rotated.
            keys: (num_kv_heads, capacity, head_dim), rotated: one layer of a cache.
            values: like `keys`.
            weights: None, or (rows, slots in use) float32 that receives the attention weights, mean
                over heads.

        Returns:
            (rows, num_heads, head_dim).
        """
        ...


@dataclass(frozen=True, slots=True)
class _Positions:
    """What is known of the rows and slots whatever kernel attends."""

    row_positions: Tensor
    slot_positions: Tensor

    def by_mask(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Attend by matrix products under a mask of positions; every device can."""
        used = len(self.slot_positions)
        bias = causal_bias(self.row_positions, self.slot_positions, queries.dtype)
        return attend(queries, keys[:, :used], values[:, :used], bias, weights)


@dataclass(frozen=True, slots=True)
class ComparedPositions(_Positions):
    """Few rows on a GPU: a kernel of our own compares positions by itself."""

    kernel: Callable[..., Tensor]

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says."""
        at = (len(self.slot_positions), self.row_positions, self.slot_positions)
        return self.kernel(queries, keys, values, *at, weights=weights)


@dataclass(frozen=True, slots=True)
class CausalSequence(_Positions):
    """Rows on a GPU that are the last, by position, of the slots they see: plain causal attention.

    Attributes:
        num_seen: how many slots those are.
        order: (num_seen,) those slots in order of position; None if they are the first ones and
            lie in order.
    """

    num_seen: int
    order: Tensor | None

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says; a layer whose weights are wanted under a mask."""
        if weights is not None:
            return self.by_mask(queries, keys, values, weights)
        if self.order is None:
            keys, values = keys[:, : self.num_seen], values[:, : self.num_seen]
        return many_rows_gpu.attend_in_order(queries, keys, values, self.order)


@dataclass(frozen=True, slots=True)
class MaskedOnGpu(_Positions):
    """Any other rows on a GPU.

    Attributes:
        bias: (rows, slots), added to the scores; None where every row sees every slot.
    """

    bias: Tensor | None

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says."""
        used = len(self.slot_positions)
        keys, values = keys[:, :used], values[:, :used]
        if weights is not None:
            return attend(queries, keys, values, self.bias, weights)
        return many_rows_gpu.attend_by_position(queries, keys, values, self.bias)


@dataclass(frozen=True, slots=True)
class Masked(_Positions):
    """Rows on the CPU, few or in no order; attribute as in `MaskedOnGpu`."""

    bias: Tensor | None

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says."""
        used = len(self.slot_positions)
        return attend(queries, keys[:, :used], values[:, :used], self.bias, weights)


@dataclass(frozen=True, slots=True)
class CausalBlocks(_Positions):
    """Many rows in order of position on the CPU: what nobody sees is not multiplied."""

    order: CausalOrder

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Attend as `Visibility` says."""
        return self.order.attend(queries, keys, values, weights)


def visibility(
    slots: Ints,
    positions: Ints,
    dtype: torch.dtype,
    device: torch.device,
    attend_few: Callable[..., Tensor] | None = None,
) -> Visibility:
    """Find out what the rows of a pass see, and with that which kernel attends in all its layers.

    Args:
        slots: (rows,) the rows.
        positions: (slots,) of all the cache's rows.
        dtype: of the queries.
        device: where attention will run.
        attend_few: on a GPU, a kernel like `reference.attend_slots` for up to `FEW_ROWS` rows.
    """
    # One copy. Either starts at a multiple of 16 bytes: elsewhere Triton would compile anew.
    start = len(slots) + len(slots) % 2
    both = np.zeros(start + len(positions), dtype=np.int64)
    both[: len(slots)], both[start:] = positions[slots], positions
    on_device = torch.from_numpy(both).to(device, non_blocking=True)
    known = (on_device[: len(slots)], on_device[start:])
    if attend_few is not None and len(slots) <= FEW_ROWS:
        return ComparedPositions(*known, attend_few)
    if device.type == "cuda":
        return many_on_gpu(slots, positions, known, dtype)
    order = causal_order(*known, dtype) if device.type == "cpu" else None
    return (
        Masked(*known, causal_bias(*known, dtype)) if order is None else CausalBlocks(*known, order)
    )


def many_on_gpu(
    slots: Ints, positions: Ints, on_device: tuple[Tensor, Tensor], dtype: torch.dtype
) -> CausalSequence | MaskedOnGpu:
    """Do as `visibility` does for torch's own kernels on a GPU.

    Args:
        slots: as in `visibility`.
        positions: as in `visibility`.
        on_device: positions of the rows, and of the slots, there.
        dtype: as in `visibility`; float32 has no causal kernel.
    """
    # Compared on the host: a value from the device would come after all that is under way there.
    if positions[slots].min() >= positions.max():
        return MaskedOnGpu(*on_device, None)
    order = seen_in_order(slots, positions) if dtype != torch.float32 else None
    if order is None:
        return MaskedOnGpu(*on_device, many_rows_gpu.position_bias(*on_device, dtype))
    gathered = None
    if (order != np.arange(len(order))).any():
        gathered = torch.from_numpy(order).to(on_device[0].device, non_blocking=True)
    return CausalSequence(*on_device, len(order), gathered)


def seen_in_order(slots: Ints, positions: Ints) -> Ints | None:
    """Return the slots that the last row sees, by position, if the rows are the last of them.

    Then each row sees those before its own: plain causal attention, as in a prefill or in healing.
    """
    of_rows = positions[slots]
    if (np.diff(of_rows) <= 0).any():
        return None
    seen = np.flatnonzero(positions <= of_rows[-1])
    seen = seen[np.argsort(positions[seen])]
    return seen if np.array_equal(seen[-len(slots) :], slots) else None


def causal_bias(row_positions: Tensor, slot_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return what to add to the scores so that a row sees only slots at its position or before.

    Causality goes by position, not by row: slots lie in any order.

    Args:
        row_positions: (rows,) int64.
        slot_positions: (slots,) int64.
        dtype: of the result.

    Returns:
        (rows, slots) with 0 or -inf; None where every row may see every slot.
    """
    if int(row_positions.min()) >= int(slot_positions.max()):
        return None
    hidden = row_positions[:, None] < slot_positions[None, :]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, float("-inf")
    )


def capped(scores: Tensor, cap: float) -> Tensor:
    """Return scores that a tanh keeps below a cap. Source: Gemma 2, arXiv 2408.00118, section 2."""
    return (scores / cap).tanh() * cap


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Attend from every row to the slots.

    Grouped query heads are folded into the rows of their key head, so keys and values are never
    repeated, and one row in bf16 escapes the slow path of the fused CPU kernel (911 µs against
    136 µs at 2,048 slots).

    Args:
        queries: (rows, num_heads, head_dim), rotated.
        keys: (num_kv_heads, slots, head_dim), rotated.
        values: (num_kv_heads, slots, head_dim).
        bias: from `causal_bias`.
        weights: None, or (rows, slots) float32 that receives the attention weights, mean over
            heads.
        cap: what a tanh keeps scores below; None: nothing.

    Returns:
        (rows, num_heads, head_dim).
    """
    rows, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[0]
    group = num_heads // num_kv_heads
    folded = queries.view(rows, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    folded = folded.reshape(num_kv_heads, group * rows, head_dim)
    by_matmul = rows >= _MATMUL_ROWS and queries.dtype == torch.bfloat16 and not queries.is_cuda
    if bias is not None:
        bias = bias.repeat(group, 1)
    if weights is None and not by_matmul and cap is None:
        mixed = functional.scaled_dot_product_attention(
            folded[None], keys[None], values[None], attn_mask=bias
        )[0]
    else:
        scale = head_dim**-0.5
        if cap is not None:
            scores = capped(torch.matmul(folded, keys.transpose(1, 2)) * scale, cap)
            scores = scores if bias is None else scores + bias
        elif bias is None:
            scores = torch.matmul(folded, keys.transpose(1, 2)) * scale
        else:
            scores = torch.baddbmm(
                bias.expand(num_kv_heads, -1, -1), folded, keys.transpose(1, 2), alpha=scale
            )
        shares = scores.softmax(-1)
        mixed = torch.matmul(shares, values)
        if weights is not None:
            per_head = shares.view(num_heads, rows, keys.shape[1])
            torch.mean(per_head, dim=0, dtype=torch.float32, out=weights)
    mixed = mixed.view(num_kv_heads, group, rows, head_dim)
    return mixed.permute(2, 0, 1, 3).reshape(rows, num_heads, head_dim)
