"""GGUF's block formats in torch: groups of 32 along a row, rounded as llama.cpp rounds them."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
RESIDUAL_LEVELS = 64


def q4_1_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes uint8 (groups, 32), scale and minimum fp16 (groups, 1) of Q4_1."""
    groups = weight.float().reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = (
        torch.where(scale > 0, (groups - low) / scale.clamp(min=1e-12) + 0.5, 0.0)
        .floor()
        .clamp(0, 15)
    )
    return codes.to(torch.uint8), scale.half(), low.half()


def q4_1_values(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Return the values (groups, 32) of Q4_1 parts."""
    return codes.float() * scale.float() + minimum.float()


def q4_1(weight: Tensor) -> Tensor:
    """Round a matrix (fp32) to the Q4_1 grid."""
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = (
        torch.where(scale > 0, (groups - low) / scale.clamp(min=1e-12) + 0.5, 0.0)
        .floor()
        .clamp(0, 15)
    )
    return (codes * scale.half().float() + low.half().float()).view(weight.shape)


def q8_0(weight: Tensor) -> Tensor:
    """Round a matrix to the Q8_0 grid."""
    groups = weight.float().reshape(-1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, groups / scale.clamp(min=1e-12), 0.0).round()
    return (codes * scale.half().float()).view(weight.shape)


def q4_0(weight: Tensor) -> Tensor:
    """Round a matrix to the Q4_0 grid."""
    groups = weight.float().reshape(-1, GROUP)
    scale = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    codes = (
        torch.where(scale != 0, groups / torch.where(scale != 0, scale, 1.0) + 8.5, 8.0)
        .floor()
        .clamp(0, 15)
    )
    return ((codes - 8) * scale.half().float()).view(weight.shape)


def q5_1(weight: Tensor) -> Tensor:
    """Round a matrix to the Q5_1 grid."""
    groups = weight.float().reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 31
    codes = (
        torch.where(scale > 0, (groups - low) / scale.clamp(min=1e-12) + 0.5, 0.0)
        .floor()
        .clamp(0, 31)
    )
    return (codes * scale.half().float() + low.half().float()).view(weight.shape)


ROUNDINGS = {"none": lambda w: w, "q4_0": q4_0, "q4_1": q4_1, "q5_1": q5_1, "q8_0": q8_0}


def residual_codes(weight: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Return what Q4_1 lost, in 64 levels of its step, as uint8 (groups, 32)."""
    lost = weight.float().reshape(-1, GROUP) - q4_1_values(codes, scale, minimum)
    step = scale.float().clamp(min=1e-12)
    return (
        ((lost / step + 0.5) * RESIDUAL_LEVELS)
        .floor()
        .clamp(0, RESIDUAL_LEVELS - 1)
        .to(torch.uint8)
    )


def with_residual(codes: Tensor, scale: Tensor, minimum: Tensor, residual: Tensor) -> Tensor:
    """Return the masters (groups, 32) that `residual_codes` described, to 1/128 of a step."""
    lost = (residual.float() + 0.5) / RESIDUAL_LEVELS - 0.5
    return q4_1_values(codes, scale, minimum) + lost * scale.float()
