"""Attention of many rows on a GPU, through torch's fused kernels, never through scores in memory.

Rows in order of position take the causal kernel, which skips the half that nobody sees; any other
rows take the memory-efficient one under a mask of positions. Which backend runs is said here and
not left to torch: on Hopper it prefers cuDNN, which builds a plan for every new number of rows or
slots, and after an edit both are new.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# cuDNN is half as fast again as FlashAttention 2 on Hopper but plans each size: it gets whole
# multiples of this, of which there are few.
_PLANNED_ROWS = 1024
_PLANNED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
_UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
_MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The masked kernel reads 16 bytes at a time: rows of a mask start at multiples of so many values.
_MASK_STEP = 8
# The masked kernel takes blocks of 32, 64 or 128 rows. A last block of one row whose heads share
# their keys by a stride of zero it turns round: heads for rows, and for the mask's rows its stride
# between heads, which is zero. Row 64 of 65 would see what row 0 sees (torch 2.4 to 2.13,
# `advance_to_block` in mem_eff_attention/kernel_forward.h). Then groups stand where batches do.
_BLOCK_ROWS = 32


def position_bias(row_positions: Tensor, slot_positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores so that a row sees only slots at its position or before.

    Args:
        row_positions: (rows,) int64.
        slot_positions: (slots,) int64.
        dtype: of the result; the queries'.

    Returns:
        (rows, slots) with 0 or -inf; its rows are aligned, or torch would copy it in every layer.
    """
    rows, slots = len(row_positions), len(slot_positions)
    width = -(-slots // _MASK_STEP) * _MASK_STEP
    bias = torch.zeros(rows, width, dtype=dtype, device=row_positions.device)[:, :slots]
    return bias.masked_fill_(row_positions[:, None] < slot_positions[None, :], float("-inf"))


def attend_in_order(
    queries: Tensor, keys: Tensor, values: Tensor, order: Tensor | None = None
) -> Tensor:
    """Attend from rows that are the last ones, by position, of the slots they see.

    Args:
        queries: (rows, num_heads, head_dim), rotated, in order of position.
        keys: (num_kv_heads, slots, head_dim), rotated.
        values: like `keys`.
        order: (seen,) int64, the slots that the last row sees in order of position, its own last;
            None: all of `keys`, which lie in that order. To gather them costs one pass over them.

    Returns:
        (rows, num_heads, head_dim), contiguous.

    Source: FlashAttention-2, arXiv 2307.08691; a causal mask aligned to the lower right.
    """
    # Only here: it imports torch's compiler, a second that a CPU's start need not wait.
    from torch.nn.attention.bias import causal_lower_right

    if order is not None:
        keys, values = keys.index_select(1, order), values.index_select(1, order)
    rows, seen = len(queries), keys.shape[1]
    is_planned = rows == seen and rows % _PLANNED_ROWS == 0
    with sdpa_kernel(_PLANNED if is_planned else _UNPLANNED, set_priority=True):
        mixed = scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=causal_lower_right(rows, seen),
            enable_gqa=queries.shape[1] != keys.shape[0],
        )
    return mixed[0].transpose(0, 1).contiguous()


def attend_by_position(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend from rows in any order to slots in any order.

    Args:
        queries: (rows, num_heads, head_dim), rotated.
        keys: (num_kv_heads, slots, head_dim), rotated.
        values: like `keys`.
        bias: from `position_bias`; None where every row sees every slot.

    Returns:
        (rows, num_heads, head_dim), contiguous.
    """
    rows, num_heads, head_dim = queries.shape
    num_kv_heads, slots = keys.shape[:2]
    group = num_heads // num_kv_heads
    # The query heads of a group share its keys, and all of them the mask, by strides of zero:
    # nothing is repeated in memory. As a rule key heads stand where batches do, and the blocks that
    # read the same keys run together.
    shape = (num_kv_heads, group, slots, head_dim)
    asked = queries.view(rows, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    keys, values = keys[:, None].expand(shape), values[:, None].expand(shape)
    is_swapped = bias is not None and rows % _BLOCK_ROWS == 1
    if is_swapped:
        asked, keys, values = (part.transpose(0, 1) for part in (asked, keys, values))
    with sdpa_kernel(_MASKED, set_priority=True):
        mixed = scaled_dot_product_attention(
            asked, keys, values, attn_mask=None if bias is None else bias[None, None]
        )
    if is_swapped:
        mixed = mixed.transpose(0, 1)
    return mixed.permute(2, 0, 1, 3).contiguous().view(rows, num_heads, head_dim)
