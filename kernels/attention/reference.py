"""Plain torch versions of attention over slots and of the dependency record.

They are the oracle, the documentation and the CPU path of the kernels; float64 in, float64 out.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of a row's attention to earlier rows, so many entries rank stale rows as well as all of them do.
NUM_ENTRIES = 64
# Rows whose scores the reference holds at a time, for all heads.
_ROWS_AT_A_TIME = 256


def attend_slots(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_slots: int | Tensor,
    row_positions: Tensor | None = None,
    slot_positions: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Attend from every row to the slots at its position or before.

    Args:
        queries: (rows, num_heads, head_dim), rotated; bfloat16, float16 or float32.
        keys: (num_kv_heads, capacity, head_dim), rotated, the same dtype: one layer of a cache.
        values: like `keys`.
        num_slots: how many slots are in use, the first ones; a number or a tensor of one element.
        row_positions: (rows,) int64 or int32; None: every row sees every slot in use.
        slot_positions: (num_slots or more,) int64 or int32, in any order; None with
            `row_positions`.
        weights: None, or (rows, num_slots or more) float32 that receives the attention weights,
            mean over heads; columns from num_slots on are left as they are.
        add: add to `weights` instead.

    Returns:
        (rows, num_heads, head_dim) of the queries' dtype, rounded once from float32; zeros for a
        row that sees no slot.
    """
    used = int(num_slots)
    num_rows, num_heads, head_dim = queries.shape
    shares = attention_shares(
        queries,
        keys[:, :used],
        row_positions,
        None if slot_positions is None else slot_positions[:used],
    )
    if weights is not None:
        mean = shares.mean(0).to(weights.dtype)
        weights[:, :used] = weights[:, :used] + mean if add else mean
    folded = shares.view(keys.shape[0], num_heads // keys.shape[0] * num_rows, used)
    mixed = torch.matmul(folded, values[:, :used].to(shares.dtype))
    return mixed.view(num_heads, num_rows, head_dim).transpose(0, 1).to(queries.dtype).contiguous()


def attention_shares(
    queries: Tensor, keys: Tensor, row_positions: Tensor | None, slot_positions: Tensor | None
) -> Tensor:
    """Return the softmax of `attention_scores`; zeros for a row that sees no slot."""
    scores = attention_scores(queries, keys, row_positions, slot_positions)
    return scores.softmax(-1).nan_to_num(0.0)


def attention_scores(
    queries: Tensor, keys: Tensor, row_positions: Tensor | None, slot_positions: Tensor | None
) -> Tensor:
    """Return (num_heads, rows, slots) scores in float32 or wider, -inf where a slot is not seen.

    Args:
        queries: as in `attend_slots`.
        keys: (num_kv_heads, slots, head_dim), all of them in use.
        row_positions: as in `attend_slots`.
        slot_positions: (slots,).
    """
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads, num_slots, _ = keys.shape
    wide = torch.promote_types(queries.dtype, torch.float32)
    folded = queries.transpose(0, 1).reshape(num_kv_heads, -1, head_dim).to(wide)
    scores = torch.matmul(folded, keys.transpose(1, 2).to(wide)) * head_dim**-0.5
    scores = scores.view(num_heads, num_rows, num_slots)
    if row_positions is not None and slot_positions is not None:
        hidden = row_positions[:, None] < slot_positions[None, :]
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores


def log_sums(
    queries: Tensor, keys: Tensor, row_positions: Tensor, slot_positions: Tensor
) -> Tensor:
    """Return the natural logarithm of each head's sum of exponentials of what a row sees.

    Fused attention returns the same, for instance aten::_scaled_dot_product_flash_attention.

    Args:
        queries: (rows, num_heads, head_dim), rotated.
        keys: (num_kv_heads, slots, head_dim), rotated.
        row_positions: (rows,) int64 or int32; every row sees a slot.
        slot_positions: (slots,) int64 or int32, in any order.

    Returns:
        (num_heads, rows) float32.
    """
    scores = attention_scores(queries, keys, row_positions, slot_positions)
    return scores.logsumexp(-1).to(torch.float32)


def record_dependencies(
    queries: Tensor,
    keys: Tensor,
    row_positions: Tensor,
    slot_positions: Tensor,
    mean: Tensor,
    *,
    sums: Tensor | None = None,
    share: float = 1.0,
    add: bool = False,
) -> None:
    """Write each row's attention to every slot, mean over the heads of one layer.

    A few layers of one pass are recorded into the same `mean`, the first without `add`, each with
    1 / their number for its share; then `largest_entries` keeps what matters.

    Args:
        queries: (rows, num_heads, head_dim), rotated, of the rows that a pass computes.
        keys: (num_kv_heads, slots, head_dim), rotated, with the rows' own.
        row_positions: (rows,) int64 or int32; every row sees a slot, its own.
        slot_positions: (slots,) int64 or int32, in any order: a row sees slots at its position or
            before.
        mean: (rows, slots) float32, written; 0 where a row does not see the slot.
        sums: from `log_sums`, or from the pass's own attention; None: computed here.
        share: factor of what is written.
        add: add to `mean` instead.
    """
    for first in range(0, len(queries), _ROWS_AT_A_TIME):
        rows = slice(first, first + _ROWS_AT_A_TIME)
        scores = attention_scores(queries[rows], keys, row_positions[rows], slot_positions)
        if sums is None:
            shares = scores.softmax(-1)
        else:
            shares = (scores - sums[:, rows, None]).exp()
        wanted = shares.mean(0).mul_(share).to(mean.dtype)
        mean[rows] = mean[rows] + wanted if add else wanted


def largest_entries(mean: Tensor, num_entries: int = NUM_ENTRIES) -> tuple[Tensor, Tensor]:
    """Return each row's largest entries, in no particular order.

    Args:
        mean: (rows, slots) float32, not negative.
        num_entries: per row.

    Returns:
        Slots, (rows, num_entries) int32, and weights, float16, of the same shape. A row with fewer
        entries above 0 has weights of 0, whose slots say nothing but are valid.
    """
    num_found = min(num_entries, mean.shape[1])
    found = mean.topk(num_found, sorted=False)
    indices = torch.zeros(len(mean), num_entries, dtype=torch.int32, device=mean.device)
    values = torch.zeros(len(mean), num_entries, dtype=torch.float16, device=mean.device)
    indices[:, :num_found], values[:, :num_found] = found.indices, found.values
    return indices, values
