"""Packing is bit exact, both ways, and agrees with gguf's own dequantizer."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.kernels.matmul.reference import dequantize
from keyturn.kernels.weights import packed
from keyturn.kernels.weights.blocks import BlockMatrix


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 2**31),
)
def test_codes_round_trip(bits, rows, groups, group, seed):
    random = torch.Generator().manual_seed(seed)
    shape = (rows, groups * group)
    codes = torch.randint(0, 2**bits, shape, generator=random, dtype=torch.uint8)
    weight = packed.pack_codes(codes, torch.ones(rows, groups).half(), bits=bits)
    assert torch.equal(packed.unpack_codes(weight), codes)
    assert weight.shape == shape
    assert weight.words.numel() * 32 == codes.numel() * bits
    assert weight.group == group


def test_scales_in_any_memory_layout_are_taken():
    codes = torch.randint(0, 16, (6, 256), dtype=torch.uint8)
    wide = torch.rand(3, 6, 11).half()
    for scales in (wide[0, :, 1:9], wide[0, :, :8].T.contiguous().T, wide[1, :, 3:].clone()):
        weight = packed.pack_codes(codes, scales, scales)
        assert weight.scales.is_contiguous()
        assert torch.equal(weight.scales, scales)
        values = weight.scales.view(torch.int64).view(torch.float16)
        assert torch.equal(values, scales)
        assert weight.minimums.view(torch.int64).shape == (6, 2)


@settings(max_examples=25, deadline=None)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 9),
    words=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_planes_round_trip(bits, rows, words, seed):
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, 32 * words), generator=random, dtype=torch.uint8)
    weight = packed.pack_planes(codes, torch.ones(rows, 1).half(), bits)
    assert torch.equal(packed.unpack_planes(weight), codes)
    assert weight.planes.numel() * 32 == codes.numel() * bits  # b bits for b-bit weights
    assert weight.shape == codes.shape


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_values_equal_gguf_when_packed_from_its_blocks(kind):
    values = np.random.default_rng(0).standard_normal((7, 576)).astype(np.float32)
    blocks = gguf_quantize(values, GGMLQuantizationType[kind])
    expected = torch.from_numpy(gguf_dequantize(blocks, GGMLQuantizationType[kind]))
    matrix = BlockMatrix(torch.from_numpy(blocks), kind)
    assert matrix.shape == values.shape
    weight = packed.pack_gguf(matrix)
    found = dequantize(weight)
    assert torch.equal(matrix.values(torch.float32), found)
    some = torch.tensor([3, 0, 3])
    assert torch.equal(matrix.at(some).values(torch.bfloat16), found[some].bfloat16())
    # gguf, too, multiplies and adds in float32; a fused add may differ by one rounding.
    tolerance = 0 if kind != "Q4_1" else 2**-22
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert weight.num_bytes == blocks.nbytes


def test_bipolar_values_are_symmetric_odd_integers():
    codes = torch.arange(32, dtype=torch.uint8)[None] % 8
    values = dequantize(packed.pack_planes(codes, torch.ones(1, 1).half(), 3))
    assert values[0, :8].tolist() == [-7, -5, -3, -1, 1, 3, 5, 7]


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, True), (4, 64, False), (8, 96, True)]
)
def test_rounding_stays_within_half_a_step(bits, group, symmetric):
    values = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    values[0] = 0  # a group of zeros has no scale
    group = 192 if group == 96 else group
    weight = packed.quantize_groups(values, bits, group, symmetric=symmetric)
    error = (dequantize(weight) - values).reshape(5, -1, group).abs().amax(-1)
    # The largest value of a symmetric group, and scales rounded to fp16, take a little more.
    assert (error <= 0.52 * weight.scales.float() + 2e-3 * values.abs().max()).all()
    assert not dequantize(weight)[0].any()


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (torch.zeros(2, 40, dtype=torch.uint8), torch.ones(2, 1)),  # no whole units
        (torch.zeros(2, 64, dtype=torch.int32), torch.ones(2, 2)),
        (torch.zeros(2, 64, dtype=torch.uint8), torch.ones(3, 2)),
        (torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 3)),  # no whole groups
        (torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 4)),  # groups of half a unit
    ],
)
def test_error_when_codes_and_scales_do_not_fit(codes, scales):
    with pytest.raises(ValueError, match=r"codes|scales|columns"):
        packed.pack_codes(codes, scales)


def test_error_when_the_format_is_unknown():
    blocks = torch.zeros(1, 36, dtype=torch.uint8)
    with pytest.raises(ValueError, match="Q5_0"):
        BlockMatrix(blocks, "Q5_0")
    with pytest.raises(ValueError, match="multiple of 34"):
        BlockMatrix(blocks, "Q8_0")
    with pytest.raises(ValueError, match="9 bits"):
        packed.pack_planes(blocks[:, :32], torch.ones(1, 1), 9)
