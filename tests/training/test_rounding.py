"""Training rounds as the file is rounded."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from training.model.rounding import FORMATS, q4_1, rounded

Q4_1 = GGMLQuantizationType.Q4_1


def by_library(weight, kind=Q4_1):
    return dequantize(quantize(weight.numpy(), kind), kind)


@given(st.integers(0, 10_000), st.floats(-20, 20), st.sampled_from(["normal", "flat", "coarse"]))
@settings(max_examples=100, deadline=None)
def test_q4_1_equals_the_library_bit_for_bit(seed, exponent, kind):
    torch.manual_seed(seed)
    weight = torch.randn(4, 64) * 2.0**exponent
    if kind == "flat":
        weight[1:, :32] = weight[1:, :1]  # nothing to scale
    if kind == "coarse":
        weight = (weight * 8).round() / 8  # halfway between codes
    weight = weight.clamp(-6e4, 6e4)
    assert np.array_equal(q4_1(weight).numpy(), by_library(weight))


def test_rounding_a_rounded_matrix_keeps_its_codes():
    torch.manual_seed(0)
    blocks = quantize((torch.randn(64, 576) * 0.05).numpy(), Q4_1)
    assert np.array_equal(quantize(dequantize(blocks, Q4_1), Q4_1), blocks)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_rounds(name):
    torch.manual_seed(0)
    weight = torch.randn(3, 64)
    result = rounded(weight, name)
    assert result.shape == weight.shape and result.dtype == torch.float32
    assert (result - weight).abs().max() < (0.5 if name.startswith("q4") else 0.1)


def test_rounding_is_of_any_leading_shape():
    weight = torch.randn(2, 3, 64)
    assert torch.equal(q4_1(weight)[1], q4_1(weight[1]))
