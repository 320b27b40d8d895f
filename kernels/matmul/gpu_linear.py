"""Projections on a GPU: blocks stay packed; dense matrices go to cuBLAS, few rows excepted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..weights.blocks import BlockMatrix
from ..weights.linear import DenseLinear, Linear, Matrix, values_of
from ..weights.packed import BitWeight, QuantWeight, joined_planes, pack_gguf, quantize_planes
from . import dense as dense_gemv
from .bit_planes.launch import bit_matmul
from .quant import quant_matmul

_PLANE_GROUPS = (128, 64, 32)
# Values rounded to planes at a time: what is needed meanwhile takes some 16 bytes for each.
PIECE_VALUES = 1 << 20


class QuantLinear:
    """A projection whose weight stays in 4 or 8 bits; attributes as in `Linear`."""

    def __init__(self, weight: QuantWeight, bias: Tensor | None) -> None:
        """Take the packed weight (N, K) and the bias (N,)."""
        self.weight, self.bias = weight, bias
        self.num_out, self.num_in = weight.shape

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        return quant_matmul(x, self.weight, self.bias, out_dtype=out_dtype)


class BitLinear:
    """A projection whose weight is 2 to 8 planes of bits; attributes as in `Linear`."""

    def __init__(self, weight: BitWeight, bias: Tensor | None) -> None:
        """Take the packed weight (N, K) and the bias (N,)."""
        self.weight, self.bias = weight, bias
        self.num_out, self.num_in = weight.shape

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        return bit_matmul(x, self.weight, self.bias, out_dtype=out_dtype)


class GpuLinear(DenseLinear):
    """A dense projection, for few rows by a kernel of our own; attributes as in `Linear`."""

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        if x.numel() <= dense_gemv.MAX_ROWS * self.num_in:
            return dense_gemv.dense_gemv(x, self.weight, self.bias, out_dtype=out_dtype)
        return super().__call__(x, out_dtype)


def make_linear(matrix: Matrix, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the projection for a matrix; the packed kernels take bf16 and fp16 activations."""
    if dtype not in dense_gemv.DTYPES:
        return DenseLinear(matrix, bias, dtype)
    if isinstance(matrix, BlockMatrix):
        return QuantLinear(pack_gguf(matrix), bias)
    return GpuLinear(matrix, bias, dtype)


def make_bit_linear(weight: BitWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the projection for bit planes.

    Args:
        weight: (N, K), as from `to_planes`.
        bias: (N,) or None.
        dtype: of the activations, bf16 or fp16.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in dense_gemv.DTYPES:
        raise ValueError(f"activations are bf16 or fp16, not {dtype}")
    return BitLinear(weight, bias)


def to_planes(matrix: Matrix, bits: int) -> BitWeight:
    """Return a matrix rounded to bit planes.

    Args:
        matrix: (N, K), K a multiple of 32.
        bits: 2 to 8 planes.

    Raises:
        ValueError: another K.
    """
    num_in = matrix.shape[1]
    # A scale for so many columns: with one for a whole row a single large weight coarsens them all.
    group = next((size for size in _PLANE_GROUPS if num_in % size == 0), None)
    if group is None:
        raise ValueError(f"{num_in} columns; bit planes take multiples of {_PLANE_GROUPS[-1]}")
    step = max(1, PIECE_VALUES // num_in)
    pieces = (
        BlockMatrix(rows, matrix.kind) if isinstance(matrix, BlockMatrix) else rows
        for rows in (matrix.blocks if isinstance(matrix, BlockMatrix) else matrix).split(step)
    )
    packed = [quantize_planes(values_of(piece, torch.float32), bits, group) for piece in pieces]
    return joined_planes(packed)
