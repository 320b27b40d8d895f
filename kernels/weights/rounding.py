"""Round matrices to the blocks of a GGUF file, on the device where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import GGUF_BLOCKS, GGUF_GROUP, BlockMatrix
from .threads import one_thread

# Values rounded at a time. On the CPU so many stay in its cache from one step to the next; on a GPU
# what is needed meanwhile takes some 16 bytes for each, and an embedding has hundreds of millions.
_PIECE_VALUES = 1 << 16
_GPU_PIECE_VALUES = 1 << 22


def to_blocks(weight: Tensor, kind: str) -> BlockMatrix:
    """Round a matrix to the nearest codes, with each block's scale rounded first.

    Args:
        weight: (N, K) float, K a multiple of 32.
        kind: "Q4_1", between the minimum and the maximum of 32 columns, or "Q8_0", around zero.

    Raises:
        ValueError: another K or kind, or values that no scale in fp16 reaches (infinite, NaN, or
            far above those of any model).
    """
    if weight.ndim != 2 or weight.shape[1] % GGUF_GROUP or kind not in ("Q4_1", "Q8_0"):
        raise ValueError(f"{list(weight.shape)} cannot be rounded to {kind}: K is a multiple of 32")
    rows, columns = weight.shape
    size, _ = GGUF_BLOCKS[kind]
    num_blocks = columns // GGUF_GROUP
    blocks = torch.empty(rows, num_blocks * size, dtype=torch.uint8, device=weight.device)
    step = max(1, (_GPU_PIECE_VALUES if weight.is_cuda else _PIECE_VALUES) // columns)
    round_piece = _round_q4_1 if kind == "Q4_1" else _round_q8_0
    is_finite = True
    with one_thread():
        for piece, out in zip(weight.split(step), blocks.split(step), strict=True):
            groups = piece.float().reshape(-1, GGUF_GROUP)
            is_finite &= round_piece(groups, out.view(-1, size))
    if not is_finite:
        raise ValueError("values that are not finite in fp16")
    return BlockMatrix(blocks, kind)


def _round_q4_1(groups: Tensor, out: Tensor) -> bool:
    minimums = groups.amin(1).half()  # with amax five times as fast as aminmax
    scales = ((groups.amax(1) - minimums.float()) / 15).half()
    codes = (groups - minimums.float()[:, None]) * _inverse(scales)
    codes = codes.add_(0.5).clamp_(0, 15).to(torch.uint8)  # what is cut off rounds to nearest
    out[:, 0:2] = scales[:, None].view(torch.uint8)
    out[:, 2:4] = minimums[:, None].view(torch.uint8)
    torch.bitwise_or(codes[:, :16], codes[:, 16:] << 4, out=out[:, 4:])
    return bool((scales.isfinite() & minimums.isfinite()).all())


def _round_q8_0(groups: Tensor, out: Tensor) -> bool:
    scales = (groups.abs().amax(1) / 127).half()
    codes = (groups * _inverse(scales)).round_().clamp_(-127, 127).to(torch.int8)
    out[:, 0:2] = scales[:, None].view(torch.uint8)
    out[:, 2:] = codes.view(torch.uint8)
    return bool(scales.isfinite().all())


def _inverse(scales: Tensor) -> Tensor:
    """Return what codes are multiplied by, (n, 1): 0 where a block is all one value."""
    return torch.where(scales == 0, 0, 1 / scales.float())[:, None]
