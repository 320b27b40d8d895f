"""Attention of a few rows over the slots of a cache that lie in arbitrary order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...kernels.attention import many_rows_gpu as prefill_attention
from ...kernels.attention.many_rows_cpu import CausalOrder, causal_order

# From this many rows on, bf16 matrix products beat the fused CPU kernel (256 rows over 2,048 slots:
# 2.9 ms against 7.5 ms on AVX512-BF16); below it the fused kernel wins.
_MATMUL_ROWS = 16

Ints = NDArray[np.int64]
# What tells rows which slots they see: what to add to scores, an order, or nothing if they see all.
Causality = Tensor | CausalOrder | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What the rows of one pass see, found once on the host and used in every layer.

    Attributes:
        row_positions: (rows,) int64, on the device.
        slot_positions: (slots,) int64, on the device.
        num_ordered: on a GPU, if the rows are the last by position of the slots they see, how many
            slots those are; else 0.
        order: (num_ordered,) those slots in order of position; None if they are the first ones and
            lie in order.
        bias: where there is no such order: (rows, slots), from `causal_bias`, or on the CPU an
            order of another kind; None where every row sees every slot.
    """

    row_positions: Tensor
    slot_positions: Tensor
    num_ordered: int
    order: Tensor | None
    bias: Causality


def look(
    slots: Ints,
    positions: Ints,
    dtype: torch.dtype,
    device: torch.device,
    *,
    few_rows: int = 0,
) -> Sight:
    """Find out what the rows of a pass see.

    Args:
        slots: (rows,) the rows.
        positions: (slots,) of all the cache's rows.
        dtype: of the queries.
        device: where attention will run.
        few_rows: on a GPU, up to how many rows a kernel that compares positions by itself serves;
            they get positions only.
    """
    # One copy. Either starts at a multiple of 16 bytes: elsewhere Triton would compile anew.
    start = len(slots) + len(slots) % 2
    both = np.zeros(start + len(positions), dtype=np.int64)
    both[: len(slots)], both[start:] = positions[slots], positions
    on_device = torch.from_numpy(both).to(device, non_blocking=True)
    row_positions, slot_positions = on_device[: len(slots)], on_device[start:]
    if device.type == "cuda" and len(slots) <= few_rows:
        return Sight(row_positions, slot_positions, 0, None, None)
    if device.type == "cuda":
        return _look_on_gpu(slots, positions, row_positions, slot_positions, dtype)
    bias: Causality = None
    if device.type == "cpu":
        bias = causal_order(row_positions, slot_positions, dtype)
    if bias is None:
        bias = causal_bias(row_positions, slot_positions, dtype)
    return Sight(row_positions, slot_positions, 0, None, bias)


def _look_on_gpu(
    slots: Ints, positions: Ints, row_positions: Tensor, slot_positions: Tensor, dtype: torch.dtype
) -> Sight:
    # Compared on the host: a value from the device would come after all that is under way there.
    order = gathered = bias = None
    if positions[slots].min() < positions.max():
        order = seen_in_order(slots, positions) if dtype != torch.float32 else None
        if order is None:
            bias = prefill_attention.position_bias(row_positions, slot_positions, dtype)
        elif (order != np.arange(len(order))).any():
            gathered = torch.from_numpy(order).to(row_positions.device, non_blocking=True)
    num_ordered = 0 if order is None else len(order)
    return Sight(row_positions, slot_positions, num_ordered, gathered, bias)


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


def attend_on_gpu(queries: Tensor, keys: Tensor, values: Tensor, sight: Sight) -> Tensor:
    """Do as `attend` does, for what `look` found on a GPU.

    Args:
        queries: as in `attend`.
        keys: as in `attend`.
        values: as in `attend`.
        sight: of this pass.
    """
    if not sight.num_ordered:
        assert not isinstance(sight.bias, CausalOrder), "for the CPU"
        return prefill_attention.attend_by_position(queries, keys, values, sight.bias)
    if sight.order is None:
        keys, values = keys[:, : sight.num_ordered], values[:, : sight.num_ordered]
    return prefill_attention.attend_in_order(queries, keys, values, sight.order)


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


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Causality, weights: Tensor | None
) -> Tensor:
    """Attend from every row to the slots.

    Grouped query heads are folded into the rows of their key head, so keys and values are never
    repeated, and one row in bf16 escapes the slow path of the fused CPU kernel (911 µs against
    136 µs at 2,048 slots).

    Args:
        queries: (rows, num_heads, head_dim), rotated.
        keys: (num_kv_heads, slots, head_dim), rotated.
        values: (num_kv_heads, slots, head_dim).
        bias: from `causal_bias`, or from `causal_order`.
        weights: None, or (rows, slots) float32 that receives the attention weights, mean over
            heads.

    Returns:
        (rows, num_heads, head_dim).
    """
    if isinstance(bias, CausalOrder):
        return bias.attend(queries, keys, values, weights)
    rows, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[0]
    group = num_heads // num_kv_heads
    folded = queries.view(rows, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    folded = folded.reshape(num_kv_heads, group * rows, head_dim)
    by_matmul = rows >= _MATMUL_ROWS and queries.dtype == torch.bfloat16 and not queries.is_cuda
    if bias is not None:
        bias = bias.repeat(group, 1)
    if weights is None and not by_matmul:
        mixed = functional.scaled_dot_product_attention(
            folded[None], keys[None], values[None], attn_mask=bias
        )[0]
    else:
        scale = head_dim**-0.5
        if bias is None:
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
