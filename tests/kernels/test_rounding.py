"""Matrices rounded to blocks: as close as the format lets, and as close as gguf's own rounding."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from keyturn.kernels.weights.rounding import to_blocks


def gguf_error(weight, kind):
    wanted = GGMLQuantizationType[kind]
    rounded = quants.dequantize(quants.quantize(weight.numpy(), wanted), wanted)
    return float(np.square(rounded - weight.numpy()).mean() ** 0.5)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 32), (70, 96), (300, 2048)])
def test_rounding_is_as_close_as_that_of_gguf(kind, dtype, shape):
    random = torch.Generator().manual_seed(len(kind) + shape[0])
    weight = (torch.randn(shape, generator=random) * 0.03).to(dtype)
    blocks = to_blocks(weight, kind)
    assert blocks.shape == shape and blocks.kind == kind
    values, weight = blocks.values(torch.float32), weight.float()
    assert float((values - weight).square().mean().sqrt()) <= 1.01 * gguf_error(weight, kind)
    groups = weight.view(shape[0], -1, 32)
    spread = groups.amax(-1) - groups.amin(-1) if kind == "Q4_1" else 2 * groups.abs().amax(-1)
    steps = 15 if kind == "Q4_1" else 254
    worst = (values - weight).abs().view(groups.shape).amax(-1)
    assert bool((worst <= 0.51 * spread / steps + spread * 2**-10).all())


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_blocks_of_one_value_and_of_subnormal_scales_stay(kind):
    weight = torch.zeros(4, 64)
    weight[1], weight[2, :32], weight[3] = 0.5, -2.0, 1e-9
    values = to_blocks(weight, kind).values(torch.float32)
    assert torch.allclose(values, weight, atol=2e-3)
    assert torch.equal(values[0], weight[0])


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e9])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_values_that_no_scale_reaches_are_refused(kind, bad):
    weight = torch.ones(4, 64)
    weight[2, 40] = bad
    with pytest.raises(ValueError, match="not finite"):
        to_blocks(weight, kind)


def test_a_width_without_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        to_blocks(torch.ones(4, 48), "Q4_1")
