"""Products of one to four rows with a bf16 or fp16 matrix, at the speed of memory.

cuBLAS reaches 43 to 76 % of an H100's copy bandwidth at one row. The device code is in
`dense_device.py`; what is promised, in `layer.reference.fused_linear`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..weights.packed import QuantWeight
from .dense_device import dense_gemv_kernel
from .early_launch import early
from .fusion import PLAIN, Fusion
from .quant import launches
from .table import GemvTile, plan_for

KIND = "d16"
MAX_ROWS = 4
DTYPES = (torch.bfloat16, torch.float16)
# Columns in 16 bytes, a thread's load.
UNIT = 8


def dense_gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply any number of rows, four to a launch; see `layer.reference.fused_linear`.

    Args:
        x: (..., K).
        weight: (N, K), of the same dtype, contiguous.
        bias: (N,) float, or None.
        out_dtype: of the result, `x.dtype` by default.

    Returns:
        (..., N).

    Raises:
        ValueError: shapes, dtypes, devices or memory layout do not fit.
    """
    num_out, num_in = weight.shape
    rows = x.reshape(-1, num_in) if x.shape[-1:] == (num_in,) else x
    rows = rows.contiguous()
    check(rows[:MAX_ROWS], weight, bias)
    out = torch.empty(len(rows), num_out, dtype=out_dtype or x.dtype, device=x.device)
    tile = tile_for(weight)
    with torch.cuda.device_of(x):
        for some, into in launches(rows, out, MAX_ROWS):
            gemv(some, weight, bias, into, tile)
    return out.view(*x.shape[:-1], num_out)


def gemv(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    tile: GemvTile,
    fusion: Fusion = PLAIN,
) -> None:
    """Launch the kernel for 1 to 4 rows; `out` is as `fusion.new_output` makes it."""
    num_out, num_in = weight.shape
    dense_gemv_kernel[(triton.cdiv(num_out, tile.block_n),)](
        rows,
        weight,
        out if bias is None else bias,
        out=out,
        n=num_out,
        k=num_in,
        x_stride=rows.stride(0),
        HAS_BIAS=bias is not None,
        ROWS=len(rows),
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_u * UNIT,
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
        **early(rows),
        **fusion.arguments(out),
    )


def tile_for(weight: Tensor) -> GemvTile:
    """Return how a weight's product is cut."""
    return plan_for(weight.device, KIND, *weight.shape).gemv


def check(x: Tensor, weight: Tensor | QuantWeight, bias: Tensor | None) -> None:
    """Raise ValueError unless a launch can take these: it would read past the end."""
    num_out, num_in = weight.shape
    if x.ndim != 2 or x.shape[1] != num_in or len(x) > MAX_ROWS:
        raise ValueError(f"activations {list(x.shape)}: up to {MAX_ROWS} rows of {num_in}")
    if x.dtype not in DTYPES or not x.is_contiguous():
        raise ValueError(f"activations are bf16 or fp16 and contiguous, not {x.dtype}")
    values = weight.words if isinstance(weight, QuantWeight) else weight
    if isinstance(weight, Tensor) and (weight.dtype != x.dtype or not weight.is_contiguous()):
        raise ValueError(f"weight {weight.dtype} for activations {x.dtype} must be contiguous")
    if bias is not None and (bias.shape != (num_out,) or not bias.is_contiguous()):
        raise ValueError(f"bias {list(bias.shape)} for {num_out} output features")
    if x.device != values.device or (bias is not None and bias.device != x.device):
        raise ValueError(f"activations on {x.device}, weight on {values.device}")
