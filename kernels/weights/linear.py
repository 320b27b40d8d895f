"""The projections of a layer as callables, with the weight in whatever form is fastest."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import BlockMatrix

Matrix = Tensor | BlockMatrix

# With bf16 weights the largest outputs of a row are recomputed in float32, so that greedy decoding
# does not hang on ties of a format with 8 bits of precision.
_NUM_EXACT = 64
# Up to this many rows that is cheaper than the whole product in float32.
FEW_ROWS = 4


class Linear(Protocol):
    """x @ weight.T + bias.

    Attributes:
        num_out: N, output features.
        num_in: K, input features.
    """

    num_out: int
    num_in: int

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply.

        Args:
            x: (..., K), in the dtype the linear was made for.
            out_dtype: None for `x.dtype`, or float32 (logits).

        Returns:
            (..., N).
        """
        ...


class DenseLinear:
    """A projection whose weight is a plain matrix; attributes as in `Linear`."""

    def __init__(self, matrix: Matrix, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Take the matrix (N, K) and the bias (N,); blocks are turned into values of `dtype`."""
        self.weight = values_of(matrix, dtype)
        self.bias = bias
        self.num_out, self.num_in = self.weight.shape

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says.

        Float32 outputs of a bf16 weight and few rows on the CPU: only the 64 largest of a row are
        exact to float32, the others carry bf16's rounding.
        """
        if out_dtype is None or out_dtype == x.dtype:
            return functional.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.num_in)
        if x.is_cuda:
            out = torch.mm(rows, self.weight.T, out_dtype=out_dtype)
        elif len(rows) > FEW_ROWS:
            out = functional.linear(rows.to(out_dtype), self.weight.to(out_dtype))
        else:
            out = functional.linear(rows, self.weight).to(out_dtype)
            out = with_exact_top(out, rows, self.weight)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.num_out)


def values_of(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Return the (N, K) values of a matrix in a dtype."""
    return matrix.values(dtype) if isinstance(matrix, BlockMatrix) else matrix.to(dtype)


def with_exact_top(rough: Tensor, x: Tensor, matrix: Matrix) -> Tensor:
    """Return products with the largest of each row computed in float32.

    Args:
        rough: (rows, N) float32, of a product in lower precision.
        x: (rows, K), what was multiplied.
        matrix: (N, K).
    """
    top = rough.topk(min(_NUM_EXACT, rough.shape[1])).indices
    if isinstance(matrix, BlockMatrix):
        chosen = matrix.at(top.flatten()).values(torch.float32).view(*top.shape, -1)
    else:
        chosen = matrix[top].float()
    return rough.scatter(1, top, torch.einsum("nkd,nd->nk", chosen, x.float()))


def fused(matrices: list[Matrix], dtype: torch.dtype) -> Matrix:
    """Return matrices with the same input one below the other, in blocks if all are alike."""
    kinds = {part.kind if isinstance(part, BlockMatrix) else "" for part in matrices}
    if len(kinds) == 1 and "" not in kinds:
        parts = [part.blocks for part in matrices if isinstance(part, BlockMatrix)]
        return BlockMatrix(_joined(parts), kinds.pop())
    values = [values_of(part, dtype) for part in matrices]
    return values[0] if len(values) == 1 else torch.cat(values)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return rows one below the other; where they lie so already, mapped from a file, no copy."""
    storage = parts[0].untyped_storage().data_ptr()
    at = parts[0].data_ptr()
    for part in parts:
        is_next = part.data_ptr() == at and part.untyped_storage().data_ptr() == storage
        if not is_next or not part.is_contiguous():
            return torch.cat(parts)
        at += part.nbytes
    return parts[0].as_strided((sum(map(len, parts)), parts[0].shape[1]), parts[0].stride())
