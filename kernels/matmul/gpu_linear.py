"""Projections on a GPU: blocks stay packed; dense matrices go to cuBLAS, few rows excepted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..weights.blocks import BlockMatrix
from ..weights.linear import DenseLinear, Linear, Matrix
from ..weights.packed import QuantWeight, pack_gguf
from . import dense as dense_gemv
from .quant import quant_matmul


class QuantLinear:
    """A projection whose weight stays in 4 or 8 bits; attributes as in `Linear`."""

    def __init__(self, weight: QuantWeight, bias: Tensor | None) -> None:
        """Take the packed weight (N, K) and the bias (N,)."""
        self.weight, self.bias = weight, bias
        self.num_out, self.num_in = weight.shape

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says."""
        return quant_matmul(x, self.weight, self.bias, out_dtype=out_dtype)


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
