"""Device code of `step.py`: norms, the residual sum, the gated activation."""

# What @triton.jit makes of a function's types is beyond a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["eps"])
def add_rms_norm_kernel(
    hidden: tl.tensor,
    update: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    HAS_UPDATE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add and norm one row; all of it stays in registers between the sum and the scaling."""
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.cast(tl.program_id(0), tl.int64) * width
    value = tl.load(hidden + row + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        value += tl.load(update + row + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # the norm of what the next layers see
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(normed + row + at, (value * factor * gain).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, inner: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Multiply BLOCK columns of one row by their gate; the grid is (rows, column blocks)."""
    row = tl.cast(tl.program_id(0), tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    gate = tl.load(gate_up + 2 * row * inner + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (2 * row + 1) * inner + at, mask=inside, other=0.0).to(tl.float32)
    passed = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * inner + at, passed.to(out.dtype.element_ty), mask=inside)
