"""Matmuls with weights of 2 to 8 bit planes on a GPU: which kernel, and its launch.

`matmul/reference.py` has the same signatures in plain torch and says what is promised.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...weights.packed import BitWeight, plane_spacing
from ..quant import (
    DOT_ROWS,
    GEMV_ROWS,
    block_m,
    choose_path,
    dense,
    launches,
    partial_sums,
    prepare,
)
from ..reference import dequantize
from ..table import DotTile, GemvTile, plan_for
from .device import bit_gemv_kernel
from .dot_device import bit_dot_kernel, quantize_rows_kernel


def bit_matmul(
    x: Tensor,
    weight: BitWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: str | None = None,
) -> Tensor:
    """Multiply activations by a weight of bit planes; see `matmul.reference.bit_matmul`.

    The table never chooses "dense", which unpacks the planes with torch.
    """
    rows, out = prepare(x, weight, bias, out_dtype)
    plan = plan_for(x.device, f"b{weight.bits}", *weight.shape)
    path = choose_path(path, len(rows), plan._replace(min_dense_rows=len(rows) + 1), False)
    if path == "gemv":
        for some, into in launches(rows, out, GEMV_ROWS):
            gemv(some, weight, bias, into, plan.gemv)
    elif path == "dot":
        for some, into in launches(rows, out, DOT_ROWS):
            dot(some, None, weight, bias, into, plan.dot)
    else:
        dense(rows, dequantize(weight, x.dtype), bias, out)
    return out.view(*x.shape[:-1], out.shape[1])


def bit_matmul_int8(
    x: Tensor,
    x_scales: Tensor,
    weight: BitWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply int8 activations by bit planes; see `matmul.reference.bit_matmul_int8`."""
    num_out, num_in = weight.shape
    if x.ndim != 2 or x.shape[1] != num_in or x.dtype != torch.int8 or not x.is_contiguous():
        raise ValueError(f"activations {list(x.shape)} {x.dtype}: (M, {num_in}) int8 is needed")
    if x_scales.shape != (len(x),) or x_scales.dtype != torch.float32:
        raise ValueError(f"activation scales {list(x_scales.shape)} for {len(x)} rows")
    if weight.bits > 7 or weight.group != num_in:
        raise ValueError(
            f"{weight.bits} bits in groups of {weight.group}; int8 activations take 2 to 7 bits "
            "and one scale per output feature"
        )
    if bias is not None and bias.shape != (num_out,):
        raise ValueError(f"bias {list(bias.shape)} for {num_out} output features")
    tile = plan_for(x.device, f"b{weight.bits}", num_out, num_in).dot
    out = torch.empty(len(x), num_out, dtype=out_dtype, device=x.device)
    for first in range(0, len(x), DOT_ROWS):
        last = first + DOT_ROWS
        dot(x[first:last], x_scales[first:last], weight, bias, out[first:last], tile)
    return out


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to int8, one scale a row; see `matmul.reference.quantize_rows`."""
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"activations {list(x.shape)}: (M, K) with contiguous rows is needed")
    num_rows, num_in = x.shape
    out = torch.empty(num_rows, num_in, dtype=torch.int8, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if num_rows:
        quantize_rows_kernel[(num_rows,)](
            x,
            out,
            scales,
            num_in,
            x.stride(0),
            BLOCK_K=1024,  # pyright: ignore[reportArgumentType]
        )
    return out, scales


def gemv(rows: Tensor, weight: BitWeight, bias: Tensor | None, out: Tensor, tile: GemvTile) -> None:
    """Launch the kernel for 1 to 4 rows."""
    num_out, num_in = weight.shape
    bit_gemv_kernel[(triton.cdiv(num_out, tile.block_n),)](
        rows,
        weight.planes,
        weight.scales,
        weight.scales if bias is None else bias,
        out,
        num_out,
        num_in,
        rows.stride(0),
        BITS=weight.bits,
        SPACING=plane_spacing(weight.bits),
        GROUP=weight.group if weight.group < num_in else 0,
        HAS_BIAS=bias is not None,
        ROWS=len(rows),
        BLOCK_N=tile.block_n,
        BLOCK_U=tile.block_u,
        STAGES=1,
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
    )


def dot(
    rows: Tensor,
    x_scales: Tensor | None,
    weight: BitWeight,
    bias: Tensor | None,
    out: Tensor,
    tile: DotTile,
) -> None:
    """Launch the tensor core kernel for 1 to 64 rows of bf16, fp16 or (with x_scales) int8."""
    num_out, num_in = weight.shape
    bit_dot_kernel[(triton.cdiv(num_out, tile.block_n), tile.split)](
        rows,
        weight.scales if x_scales is None else x_scales,
        weight.planes,
        weight.scales,
        weight.scales if bias is None else bias,
        partial_sums(out, tile.split),
        weight.locks,
        out,
        len(rows),
        num_out,
        num_in,
        rows.stride(0),
        BITS=weight.bits,
        SPACING=plane_spacing(weight.bits),
        GROUP=weight.group if weight.group < num_in else 0,
        HAS_BIAS=bias is not None,
        BLOCK_M=block_m(len(rows)),
        BLOCK_N=tile.block_n,
        BLOCK_U=tile.block_u,
        SPLIT=tile.split,
        STAGES=tile.num_stages,
        WIDEN=not rows.is_cuda and x_scales is None,
        num_warps=tile.num_warps,  # pyright: ignore[reportCallIssue]
    )
