"""Attention of many rows in order of position on the CPU: only what a row may see is multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# From this many rows on: fewer are served as fast with a mask over all slots.
_MIN_ROWS = 16
# Bytes of one column of scores of one head: blocks of 128 rows in bfloat16, of 64 in float32.
# Smaller ones put the keys in oneDNN's order too often, larger ones compute what nobody sees.
_BLOCK_BYTES = 256
# A block multiplies a multiple of so many slots where there are as many: oneDNN compiles and keeps
# code for every number of them.
_SLOT_STEP = 64


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows `start` to `end` see slots up to `stop`, but for the hidden ones among the last.

    Attributes:
        hidden: (rows, columns) bool, for the last columns; None if all rows see all.
    """

    start: int
    end: int
    stop: int
    hidden: Tensor | None


@dataclass(frozen=True, slots=True)
class CausalOrder:
    """What rows in order of position see, for `attend` in every layer.

    Attributes:
        order: (num_seen,) int64, slots in order of position; None if they lie so.
        blocks: the rows, some at a time.
    """

    order: Tensor | None
    blocks: tuple[_Block, ...]

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Attend from every row to the slots at its position and before.

        Keys and values are brought into order, so sums run as in a prefill.

        Args:
            queries: (rows, num_heads, head_dim), rotated.
            keys: (num_kv_heads, slots, head_dim), rotated.
            values: (num_kv_heads, slots, head_dim).
            weights: None, or (rows, slots) float32 that receives the attention weights, mean over
                heads.

        Returns:
            (rows, num_heads, head_dim).
        """
        rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[0]
        shape = (rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        grouped = queries.view(shape).permute(1, 2, 0, 3)
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        by_group = mixed.view(shape).permute(1, 2, 0, 3)
        if self.order is not None:
            keys, values = keys.index_select(1, self.order), values.index_select(1, self.order)
        if weights is not None:
            weights.zero_()
        no_bias = queries.new_zeros(1, 1, 1)
        for block in self.blocks:
            asked = grouped[:, :, block.start : block.end]
            folded = asked.reshape(num_kv_heads, -1, head_dim)
            seen = keys[:, : block.stop].transpose(1, 2)
            scores = torch.baddbmm(no_bias, folded, seen, beta=0, alpha=head_dim**-0.5)
            if block.hidden is not None:
                last = scores.view(*asked.shape[:3], -1)[..., -block.hidden.shape[1] :]
                last.masked_fill_(block.hidden, float("-inf"))
            shares = scores.softmax(-1)
            part = torch.matmul(shares, values[:, : block.stop])
            by_group[:, :, block.start : block.end] = part.view(asked.shape)
            if weights is not None:
                mean = shares.view(*asked.shape[:3], -1).mean((0, 1), dtype=torch.float32)
                self._store(weights[block.start : block.end], mean)
        return mixed

    def _store(self, weights: Tensor, mean: Tensor) -> None:
        """Put the first columns, which are in order of position, where their slots are."""
        count = mean.shape[1]
        if self.order is None:
            weights[:, :count] = mean
        else:
            weights.index_copy_(1, self.order[:count], mean)


def causal_order(
    row_positions: Tensor, slot_positions: Tensor, dtype: torch.dtype
) -> CausalOrder | None:
    """Find out what rows in order of position see.

    Args:
        row_positions: (rows,) int64.
        slot_positions: (slots,) int64, in any order; those of the rows among them.
        dtype: of the queries.

    Returns:
        None where a mask, or nothing, does as well: few rows, rows in another order, or rows that
        see every slot.
    """
    num_rows, num_slots = len(row_positions), len(slot_positions)
    if num_rows < _MIN_ROWS or bool((row_positions[1:] < row_positions[:-1]).any()):
        return None
    ordered, order = slot_positions.sort(stable=True)
    counts = torch.searchsorted(ordered, row_positions, right=True)
    if int(counts[0]) == num_slots:
        return None
    blocks: list[_Block] = []
    size = _BLOCK_BYTES // dtype.itemsize
    for start in range(0, num_rows, size):
        end = min(start + size, num_rows)
        first, last = int(counts[start]), int(counts[end - 1])
        stop = min(num_slots, -(-last // _SLOT_STEP) * _SLOT_STEP)
        hidden = torch.arange(first, stop) >= counts[start:end, None] if first < stop else None
        blocks.append(_Block(start, end, stop, hidden))
    order = order[: blocks[-1].stop]
    is_ordered = torch.equal(order, torch.arange(len(order)))
    return CausalOrder(None if is_ordered else order, tuple(blocks))
