"""Torch versions of every op: the oracle, the CPU path and the documentation of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the leading dimensions of every head by the angles of its row.

    Args:
        x: (..., head_dim), any float dtype.
        cos: (..., rotary_dim / 2) float32, broadcastable against `x`'s leading dimensions.
        sin: like `cos`.
        interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, r/2), (1, r/2 + 1), ...

    Returns:
        A new tensor like `x`; dimensions from rotary_dim on are copied. Computed in float32 and
        rounded once to `x.dtype`.

    Source: RoFormer, arXiv 2104.09864, section 3.2.
    """
    half = cos.shape[-1]
    if interleaved:
        first, second = x[..., 0 : 2 * half : 2].float(), x[..., 1 : 2 * half : 2].float()
    else:
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin
    out = torch.empty_like(x) if 2 * half == x.shape[-1] else x.clone()
    if interleaved:
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = turned_first, turned_second
    else:
        out[..., :half], out[..., half : 2 * half] = turned_first, turned_second
    return out


def rope_shift(
    unrotated: Tensor,
    rotated: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> None:
    """Turn cached keys: write `rotated` at `slots` from `unrotated`, at the slots' new positions.

    Rotating from the source keeps the error at one rounding for ever; rotating in place drifts
    (bf16 keys are 12 % off after 500 edits).

    Args:
        unrotated: (num_layers, num_kv_heads, num_slots, head_dim), read at `slots`.
        rotated: the same shape and dtype, written at `slots`.
        slots: (n,) int64, unique.
        positions: (n,) int64, where each is to be; rows of the tables.
        cos: (length, rotary_dim / 2) float32, every position's cosines times the attention factor.
        sin: like `cos`.
        interleaved: as in `apply_rotary`.

    Source: Positional Integrity Encoding, "Let the Code LLM Edit Itself When You Edit the Code",
    arXiv 2407.03157, section 3.
    """
    cos, sin = cos[positions], sin[positions]
    # Layer by layer: one layer's keys stay in the processor's cache through all the steps.
    for layer in range(unrotated.shape[0]):
        keys = unrotated[layer].index_select(1, slots)
        rotated[layer].index_copy_(1, slots, apply_rotary(keys, cos, sin, interleaved))


def write_rows(
    qkv: Tensor,
    unrotated: Tensor,
    rotated: Tensor,
    values: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> Tensor:
    """Rotate one layer's queries and keys, and store keys, both ways, and values in the cache.

    Args:
        qkv: (n, num_heads + 2 * num_kv_heads, head_dim): what the projections gave, queries first,
            then keys, then values; num_heads may be 0.
        unrotated: (num_kv_heads, num_slots, head_dim), one layer, written at `slots`.
        rotated: the same.
        values: the same.
        slots: (n,) int64; where one occurs twice, its rows must be equal.
        cos: (n, rotary_dim / 2) float32, the rows' cosines times the attention factor.
        sin: like `cos`.
        interleaved: as in `apply_rotary`.

    Returns:
        (n, num_heads, head_dim): the rotated queries.
    """
    num_kv_heads = rotated.shape[0]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    to_turn, new_values = qkv.split([num_heads + num_kv_heads, num_kv_heads], 1)
    turned = apply_rotary(to_turn, cos[:, None], sin[:, None], interleaved)
    unrotated.index_copy_(1, slots, to_turn[:, num_heads:].transpose(0, 1))
    rotated.index_copy_(1, slots, turned[:, num_heads:].transpose(0, 1))
    values.index_copy_(1, slots, new_values.transpose(0, 1))
    return turned[:, :num_heads]
