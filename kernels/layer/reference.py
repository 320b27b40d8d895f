"""Torch versions of what a decode step is made of: oracle, fallback and documentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..matmul.fusion import PLAIN, CacheRows, Fusion
from ..matmul.reference import dequantize
from ..rotary.reference import write_rows
from ..weights.packed import QuantWeight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide every row by the root of its mean square, and scale its columns.

    Args:
        x: (..., width), any float dtype.
        weight: (width,).
        eps: added to the mean square.

    Returns:
        Like `x`; computed in float32 and rounded once.

    Source: "Root Mean Square Layer Normalization", arXiv 1910.07467, section 4.
    """
    return (_normed(x, eps) * weight.float()).to(x.dtype)


def add_rms_norm(
    hidden: Tensor, update: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add an update to the residual stream and norm the sum.

    Args:
        hidden: (..., width), any float dtype.
        update: the same shape.
        weight: (width,).
        eps: of the norm.

    Returns:
        The sum, rounded to `hidden.dtype`, and `rms_norm` of that.
    """
    total = (hidden.float() + update.float()).to(hidden.dtype)
    return total, rms_norm(total, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Let a gate's values through.

    Args:
        gate_up: (..., 2 * inner): the gate, then what passes it.

    Returns:
        (..., inner): silu(gate) * up in float32, rounded once to the dtype.

    Source: SwiGLU, arXiv 2002.05202, section 2.
    """
    gate, up = gate_up.float().chunk(2, -1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def fused_linear(
    x: Tensor,
    weight: Tensor | QuantWeight,
    bias: Tensor | None = None,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply a few rows by a weight, and do what precedes and follows in the same launch.

    Args:
        x: (rows, K) bf16 or fp16, contiguous, 1 to 4 rows (the reference takes any).
        weight: (N, K), dense or packed.
        bias: (N,) float, or None.
        fusion: what precedes and follows.
        out_dtype: of the result, `x.dtype` by default; float32 for logits.

    Returns:
        (rows, N); gated (rows, N / 2); with a cache (rows, num_heads, head_dim). Sums are float32
        and everything up to the result too; it is rounded once.

    A row's result depends on that row alone, to the bit; every call gives the same bits.

    Raises:
        ValueError: shapes, dtypes, devices or memory layout do not fit.
    """
    num_out = weight.shape[0]
    out = fusion.new_output(x, num_out, out_dtype)
    values = dequantize(weight) if isinstance(weight, QuantWeight) else weight.float()
    rows = x.float()
    if fusion.gain is not None:
        rows = _normed(x, fusion.eps) * fusion.gain.float()
    found = rows @ values.T
    if bias is not None:
        found += bias.float()
    if fusion.cache is not None:
        return _write(found.to(out.dtype), fusion.cache)
    if fusion.gated:
        found = silu_mul(found)
    if fusion.residual is not None:
        found += fusion.residual.float()
    return found.to(out.dtype)


def _normed(x: Tensor, eps: float) -> Tensor:
    value = x.float()
    return value * (value.square().mean(-1, keepdim=True) + eps).rsqrt()


def _write(found: Tensor, to: CacheRows) -> Tensor:
    qkv = found.view(len(found), -1, to.rotated.shape[-1])
    cos, sin = to.cos[to.positions], to.sin[to.positions]
    return write_rows(qkv, to.unrotated, to.rotated, to.values, to.slots, cos, sin, to.interleaved)
