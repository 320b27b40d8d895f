"""Launches of what a decode step is made of, few rows at a time.

The device code is in `device.py` and in `matmul/`; the references,
with the same signatures and the meaning of every argument, in `reference.py`.
"""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..matmul import dense as dense_gemv
from ..matmul import quant as quant_matmul
from ..matmul.fusion import PLAIN, Fusion
from ..matmul.table import plan_for
from ..weights.packed import QuantWeight
from .device import add_rms_norm_kernel, silu_mul_kernel

# A row of a norm lies in the registers of one program, at most so many columns to a warp.
_WARP_COLUMNS = 512
_MAX_WIDTH = 1 << 15
_SILU_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm rows in one launch; see `reference.rms_norm`.

    Raises:
        ValueError: shapes do not fit, or rows are not contiguous or wider than 32,768.
    """
    return _norm(x, None, weight, eps)[1]


def add_rms_norm(
    hidden: Tensor, update: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add and norm rows in one launch; see `reference.add_rms_norm`.

    Raises:
        ValueError: as `rms_norm`.
    """
    return _norm(hidden, update, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Let a gate's values through in one launch; see `reference.silu_mul`.

    Raises:
        ValueError: the last dimension is odd, or rows are not contiguous.
    """
    inner = gate_up.shape[-1] // 2
    if gate_up.shape[-1] % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate and up {list(gate_up.shape)} must be even and contiguous")
    out = gate_up.new_empty(*gate_up.shape[:-1], inner)
    rows = out.numel() // inner if inner else 0
    if rows:
        with torch.cuda.device_of(gate_up):
            silu_mul_kernel[(rows, triton.cdiv(inner, _SILU_BLOCK))](
                gate_up, out, inner, BLOCK=_SILU_BLOCK, num_warps=4
            )
    return out


def fused_linear(
    x: Tensor,
    weight: Tensor | QuantWeight,
    bias: Tensor | None = None,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply 1 to 4 rows in one launch; see `reference.fused_linear`."""
    dense_gemv.check(x, weight, bias)
    out = fusion.new_output(x, weight.shape[0], out_dtype)
    if not len(x):
        return out
    with torch.cuda.device_of(x):
        if isinstance(weight, QuantWeight):
            tile = plan_for(x.device, f"q{weight.bits}", *weight.shape).gemv
            quant_matmul.gemv(x, weight, bias, out, tile, fusion)
        else:
            dense_gemv.gemv(x, weight, bias, out, dense_gemv.tile_for(weight), fusion)
    return out


def _norm(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    width = hidden.shape[-1]
    if weight.shape != (width,) or width > _MAX_WIDTH:
        raise ValueError(f"weight {list(weight.shape)} for rows of {width}, at most {_MAX_WIDTH}")
    if update is not None and (update.shape != hidden.shape or not update.is_contiguous()):
        raise ValueError(f"update {list(update.shape)} must be {list(hidden.shape)}, contiguous")
    if not hidden.is_contiguous() or not weight.is_contiguous():
        raise ValueError("rows and weight must be contiguous")
    total = hidden if update is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    if hidden.numel():
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(hidden):
            add_rms_norm_kernel[(hidden.numel() // width,)](
                hidden,
                hidden if update is None else update,
                weight,
                total,
                normed,
                width,
                eps,
                HAS_UPDATE=update is not None,
                BLOCK=block,
                num_warps=max(1, min(16, block // _WARP_COLUMNS)),
            )
    return total, normed
