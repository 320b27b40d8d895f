"""The Q4_1 grid in torch, straight through, and any of GGUF's formats by the gguf library."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

GROUP = 32
FORMATS = ("none", "q4_0", "q4_1", "q5_1", "q8_0")


def q4_1(weight: Tensor) -> Tensor:
    """Round a matrix to the Q4_1 grid: groups of 32 along a row, a scale and a minimum in fp16.

    Args:
        weight: (..., columns) float32, columns a multiple of 32; any device.

    Returns:
        The same shape. On a CPU bit for bit what `gguf.quants` makes of it; compiled for a GPU a
        value halfway between two codes may take the other one.
    """
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    codes = ((groups - low) * inverse + 0.5).floor().clamp(0, 15)
    return (codes * scale.half().float() + low.half().float()).view(weight.shape)


def rounded(weight: Tensor, name: str) -> Tensor:
    """Round a matrix (rows, columns) to one of `FORMATS`; float32 on the weight's device."""
    if name == "none":
        return weight
    kind = GGMLQuantizationType[name.upper()]
    values = dequantize(quantize(weight.float().cpu().numpy(), kind), kind)
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(weight.device)
