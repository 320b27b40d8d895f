"""Torch versions of the matmuls with weights of few bits: oracle, fallback and documentation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..weights.packed import BitWeight, QuantWeight, unpack_planes


def dequantize(weight: QuantWeight | BitWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the (N, K) values of a packed weight, rounded once from float32."""
    if isinstance(weight, QuantWeight):
        return weight.values(dtype)
    values = 2.0 * unpack_planes(weight) - (2**weight.bits - 1)
    groups = values.reshape(values.shape[0], -1, weight.group) * weight.scales.float()[..., None]
    return groups.flatten(1).to(dtype)


def quant_matmul(
    x: Tensor,
    weight: QuantWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: str | None = None,
) -> Tensor:
    """Multiply activations by a weight of 4 or 8 bits: x @ weight.T + bias.

    Args:
        x: (..., K) bf16 or fp16 (the reference takes any float).
        weight: (N, K).
        bias: (N,) float.
        out_dtype: of the result, `x.dtype` by default; float32 for logits.
        path: "gemv", "dot" or "dense"; the measured table's choice by default.

    Returns:
        (..., N). Sums are float32 and rounded once.

    Within "gemv" and "dot" a row's result depends on that row alone, to the bit: not on how many
    others there are, nor on what they hold; every call gives the same bits. "gemv" multiplies the
    exact values of the weights, "dot" and "dense" round each to `x.dtype` first, unless there is
    one scale per output feature. "dense" is cuBLAS, which chooses by the number of rows.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or there is no such path.
    """
    del path  # one way here
    return _product(x, dequantize(weight), bias, out_dtype)


def bit_matmul(
    x: Tensor,
    weight: BitWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: str | None = None,
) -> Tensor:
    """Multiply activations by a weight of 2 to 8 bit planes; as `quant_matmul` otherwise."""
    del path
    return _product(x, dequantize(weight), bias, out_dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to int8, symmetric, one scale a row.

    A row's scale depends on that row alone, so that a token does not depend on its batchmates.

    Args:
        x: (M, K) float.

    Returns:
        (M, K) int8 in -127..127, round half to even, and (M,) float32 scales, 1 for a row of zeros.
    """
    peak = x.float().abs().amax(-1)
    # By a tensor: on CUDA torch multiplies by the reciprocal of a plain number, which rounds twice.
    scales = torch.where(peak > 0, peak / torch.full_like(peak, 127), 1.0)
    return (x.float() / scales[:, None]).round().to(torch.int8), scales


def bit_matmul_int8(
    x: Tensor,
    x_scales: Tensor,
    weight: BitWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply int8 activations by bit planes: W2A8, W3A8, W4A8 on int8 tensor cores.

    Args:
        x: (M, K) int8, of `quantize_rows`.
        x_scales: (M,) float32.
        weight: (N, K) of 2 to 7 bits (an 8-bit code stands for an odd number up to 255, which
            int8 does not hold), with one scale per output feature.
        bias: (N,) float.
        out_dtype: of the result.

    Returns:
        (M, N). Sums are exact integers (those of programs that share a row are added in float32,
        in a fixed order), so a row never depends on its batchmates.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the weight has groups or 8 bits.

    Source: "Efficient Arbitrary Precision Acceleration for LLMs on GPU Tensor Cores", arXiv
    2409.17870, section 3; with the planes joined before the product, since Triton has no one-bit
    tensor core operation.
    """
    values = 2 * unpack_planes(weight).long() - (2**weight.bits - 1)
    sums = (x.double() @ values.T.double()).float()  # exact: below 2 ** 53, then one rounding
    out = sums * (x_scales[:, None] * weight.scales.float().T)
    if bias is not None:
        out += bias.float()
    return out.to(out_dtype)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    out = x.float() @ weight.T
    if bias is not None:
        out += bias.float()
    return out.to(out_dtype or x.dtype)
