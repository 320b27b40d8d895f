"""Matmuls with 4- and 8-bit weights on a GPU: which kernel, and its launch.

`reference.py` has the same signatures in plain torch and says what is promised.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor
from torch.nn import functional

from ..weights.packed import BitWeight, QuantWeight
from .early_launch import early
from .fusion import PLAIN, Fusion
from .quant_device import gemv_kernel
from .quant_dot_device import dequantize_kernel, dot_kernel
from .quant_mma_device import K_WIDTH, mma_kernel
from .table import DotTile, GemvTile, MmaTile, Plan, plan_for

PATHS = ("gemv", "mma", "dot", "dense")
# Rows of one launch; more rows are more launches, so that no row's bits change.
GEMV_ROWS = 4
MMA_ROWS = 16
DOT_ROWS = 64


def quant_matmul(
    x: Tensor,
    weight: QuantWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: str | None = None,
) -> Tensor:
    """Multiply activations by a weight of 4 or 8 bits; see `reference.quant_matmul`."""
    rows, out = prepare(x, weight, bias, out_dtype)
    plan = plan_for(x.device, f"q{weight.bits}", *weight.shape)
    path = choose_path(path, len(rows), plan, takes_mma(weight))
    if path == "gemv":
        for some, into in launches(rows, out, GEMV_ROWS):
            gemv(some, weight, bias, into, plan.gemv)
    elif path == "mma":
        for some, into in launches(rows, out, MMA_ROWS):
            mma(some, weight, bias, into, plan.mma)
    elif path == "dot":
        for some, into in launches(rows, out, DOT_ROWS):
            dot(some, weight, bias, into, plan.dot)
    else:
        dense(rows, dequantize(weight, x.dtype), bias, out)
    return out.view(*x.shape[:-1], out.shape[1])


def gemv(
    rows: Tensor,
    weight: QuantWeight,
    bias: Tensor | None,
    out: Tensor,
    tile: GemvTile,
    fusion: Fusion = PLAIN,
) -> None:
    """Launch the kernel for 1 to 4 rows; `out` is as `fusion.new_output` makes it."""
    num_out, num_in = weight.shape
    gemv_kernel[(triton.cdiv(num_out, tile.block_n),)](
        rows,
        weight.words,
        *_scale_pointers(weight),
        weight.scales if bias is None else bias,
        out,
        num_out,
        num_in,
        rows.stride(0),
        BITS=weight.bits,
        GROUP=_scale_group(weight),
        ASYM=weight.minimums is not None,
        SPAN=weight.span,
        HAS_BIAS=bias is not None,
        ROWS=len(rows),
        BLOCK_N=tile.block_n,
        BLOCK_U=tile.block_u,
        AHEAD=bool(tile.ahead),
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
        **early(rows),
        **({} if fusion is PLAIN else fusion.arguments(out)),
    )


def takes_mma(weight: QuantWeight) -> bool:
    """Tell whether the path "mma" takes this weight: K a multiple of 128, fp16 groups of 32."""
    return weight.span > 1 and weight.group == 32


def mma(rows: Tensor, weight: QuantWeight, bias: Tensor | None, out: Tensor, tile: MmaTile) -> None:
    """Launch the kernel for 1 to 16 rows that feeds tensor cores from registers."""
    num_out, num_in = weight.shape
    scales = weight.scales.view(torch.int32)
    mma_kernel[(triton.cdiv(num_out, tile.block_n),)](
        rows.view(torch.int32),
        weight.words,
        scales,
        scales if weight.minimums is None else weight.minimums.view(torch.int32),
        scales if bias is None else bias,
        out,
        len(rows),
        num_out,
        num_in,
        rows.stride(0),
        ASYM=weight.minimums is not None,
        HAS_BIAS=bias is not None,
        BLOCK_N=tile.block_n,
        BLOCK_M=8 if len(rows) <= 8 else MMA_ROWS,
        WARPS=tile.num_warps,
        AHEAD=tile.ahead,
        K_WIDTH=K_WIDTH,
        WIDEN=not rows.is_cuda,
        dtype=triton.language.bfloat16 if rows.dtype == torch.bfloat16 else triton.language.float16,
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
        # Which products and sums are fused would change with BLOCK_M, and a row's bits with it.
        enable_fp_fusion=False,  # pyright: ignore[reportCallIssue]
    )


def dot(rows: Tensor, weight: QuantWeight, bias: Tensor | None, out: Tensor, tile: DotTile) -> None:
    """Launch the tensor core kernel for 1 to 64 rows."""
    num_out, num_in = weight.shape
    block_u = max(tile.block_u, weight.span)
    dot_kernel[(triton.cdiv(num_out, tile.block_n), tile.split)](
        rows,
        weight.words,
        *_scale_pointers(weight),
        weight.scales if bias is None else bias,
        partial_sums(out, tile.split),
        weight.locks,
        out,
        len(rows),
        num_out,
        num_in,
        rows.stride(0),
        BITS=weight.bits,
        GROUP=_scale_group(weight),
        ASYM=weight.minimums is not None,
        SPAN=weight.span,
        HAS_BIAS=bias is not None,
        BLOCK_M=block_m(len(rows)),
        BLOCK_N=tile.block_n,
        BLOCK_U=block_u,
        SPLIT=tile.split,
        STAGES=tile.num_stages,
        WIDEN=not rows.is_cuda,
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
    )


def dequantize(weight: QuantWeight, dtype: torch.dtype) -> Tensor:
    """Return the (N, K) values of a packed weight; see `reference.dequantize`."""
    num_out, num_in = weight.shape
    out = torch.empty(num_out, num_in, dtype=dtype, device=weight.words.device)
    block_n, block_u = 16, 16
    grid = (triton.cdiv(num_out, block_n), triton.cdiv(num_in * weight.bits // 128, block_u))
    dequantize_kernel[grid](
        weight.words,
        *_scale_pointers(weight),
        out,
        num_out,
        num_in,
        BITS=weight.bits,
        GROUP=_scale_group(weight),
        ASYM=weight.minimums is not None,
        SPAN=weight.span,
        BLOCK_N=block_n,
        BLOCK_U=block_u,
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )
    return out


def _scale_group(weight: QuantWeight) -> int:
    """Return the group for the kernels: 0 lets a row's one scale wait for the end of its sum."""
    return 0 if weight.group == weight.shape[1] and weight.minimums is None else weight.group


def _scale_pointers(weight: QuantWeight) -> tuple[Tensor, Tensor]:
    """Return scales and minimums, those of one span together in one integer."""
    scales, minimums = weight.scales, weight.minimums
    if weight.span > 1 and weight.group < 128:
        dtype = torch.int64 if weight.group == 32 else torch.int32
        scales = scales.view(dtype)
        minimums = None if minimums is None else minimums.view(dtype)
    return scales, scales if minimums is None else minimums


def prepare(
    x: Tensor, weight: QuantWeight | BitWeight, bias: Tensor | None, out_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return activations as (M, K) with contiguous rows, and an empty (M, N), after checks."""
    num_out, num_in = weight.shape
    if x.ndim == 0 or x.shape[-1] != num_in:
        raise ValueError(f"activations {list(x.shape)} for a weight of {num_in} input features")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"activations are bf16 or fp16, not {x.dtype}")
    if bias is not None and (bias.shape != (num_out,) or not bias.is_contiguous()):
        raise ValueError(f"bias {list(bias.shape)} for {num_out} output features")
    if x.device != weight.scales.device or (bias is not None and bias.device != x.device):
        raise ValueError(f"activations on {x.device}, weight on {weight.scales.device}")
    rows = x.reshape(-1, num_in)
    # Sixteen-byte loads: rows start at multiples of 8 activations.
    if rows.stride(1) != 1 or rows.stride(0) % 8 or rows.data_ptr() % 16:
        rows = rows.contiguous().clone()
    out = torch.empty(len(rows), num_out, dtype=out_dtype or x.dtype, device=x.device)
    return rows, out


def choose_path(path: str | None, num_rows: int, plan: Plan, takes_mma: bool) -> str:
    """Return the path asked for, else the one for that many rows."""
    if path is not None:
        if path not in PATHS:
            raise ValueError(f"path {path!r} is not one of {', '.join(PATHS)}")
        if path == "mma" and not takes_mma:
            raise ValueError("path 'mma' takes 4 bits with fp16 scales of 32 columns, K in 128s")
        return path
    # A plan that counts on mma leaves gemv few rows, or none.
    is_without_mma = plan.max_mma_rows > 0 and not takes_mma
    if num_rows <= (GEMV_ROWS if is_without_mma else plan.max_gemv_rows):
        return "gemv"
    if takes_mma and num_rows <= plan.max_mma_rows:
        return "mma"
    return "dense" if num_rows >= plan.min_dense_rows else "dot"


def launches(rows: Tensor, out: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows for one launch each, `most` at most, and where in `out` they go."""
    for first in range(0, len(rows), most):
        yield rows[first : first + most], out[first : first + most]


def dense(rows: Tensor, values: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Multiply by dequantised values with cuBLAS, into `out`."""
    if out.dtype == rows.dtype:
        bias = None if bias is None else bias.to(rows.dtype)
        out.copy_(functional.linear(rows, values, bias))
        return
    if rows.is_cuda and out.dtype == torch.float32:
        out.copy_(torch.mm(rows, values.T, out_dtype=torch.float32))
    else:
        out.copy_(rows.float() @ values.T.float())
    if bias is not None:
        out += bias


def block_m(num_rows: int) -> int:
    """Return the tile's side for that many rows."""
    return 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64


def partial_sums(out: Tensor, split: int) -> Tensor:
    """Return room for the parts of a split sum; `out` itself, unused, if there is none."""
    if split == 1:
        return out
    return torch.empty(split, *out.shape, dtype=torch.float32, device=out.device)
