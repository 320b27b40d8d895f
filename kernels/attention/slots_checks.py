"""What `slots.py` asks of the tensors that it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def check_slots(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_slots: int | Tensor,
    row_positions: Tensor | None,
    slot_positions: Tensor | None,
    weights: Tensor | None,
) -> None:
    """Raise ValueError unless the tensors fit: a wrong shape would read or write past the end.

    Arguments as for `attend_slots`.
    """
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads, capacity, _ = keys.shape
    if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} differ")
    if keys.shape[2] != head_dim or num_heads % num_kv_heads or queries.dtype != keys.dtype:
        raise ValueError(
            f"queries {tuple(queries.shape)} {queries.dtype} do not fit keys {tuple(keys.shape)} "
            f"{keys.dtype}"
        )
    if not queries.is_contiguous() or keys.stride(2) != 1 or keys.stride(1) != head_dim:
        raise ValueError("queries and every head of the cache must be contiguous")
    if keys.stride(0) % head_dim or capacity * head_dim >= 2**31:
        raise ValueError(f"a head of {capacity} slots, {keys.stride(0)} elements from the next")
    columns = capacity
    if isinstance(num_slots, Tensor):
        if num_slots.shape != (1,) or num_slots.dtype != torch.int32:
            raise ValueError(
                f"num_slots {tuple(num_slots.shape)} {num_slots.dtype}, not (1,) int32"
            )
    elif 0 <= num_slots <= capacity:
        columns = num_slots
    else:
        raise ValueError(f"{num_slots} slots of {capacity}")
    _check_positions(row_positions, slot_positions, num_rows, columns)
    if weights is not None and num_rows * num_heads * capacity >= 2**31:
        raise ValueError(f"scores of {num_rows} rows x {num_heads} heads x {capacity} slots")
    if weights is not None and (
        weights.dtype != torch.float32
        or weights.ndim != 2
        or len(weights) != num_rows
        or weights.shape[1] < columns
        or weights.stride(1) != 1
    ):
        raise ValueError(
            f"weights {tuple(weights.shape)} {weights.dtype} must be ({num_rows}, {columns}) "
            "float32, rows contiguous"
        )


def _check_positions(
    row_positions: Tensor | None, slot_positions: Tensor | None, num_rows: int, num_slots: int
) -> None:
    if row_positions is None and slot_positions is None:
        return
    if row_positions is None or slot_positions is None:
        raise ValueError("positions are given for rows and slots, or for neither")
    for positions, count in ((row_positions, num_rows), (slot_positions, num_slots)):
        if positions.dtype not in (torch.int32, torch.int64) or not positions.is_contiguous():
            raise ValueError(f"positions {positions.dtype} must be int32 or int64, contiguous")
        if positions.ndim != 1 or len(positions) < count:
            raise ValueError(f"{tuple(positions.shape)} positions for {count}")
