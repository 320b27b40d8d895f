"""Projections give the product of the matrix they were made of, whatever form it is in."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from keyturn.kernels.matmul.gpu_linear import QuantLinear, make_linear
from keyturn.kernels.weights.blocks import BlockMatrix
from keyturn.kernels.weights.linear import DenseLinear, fused

from ..tolerance import assert_close


def blocks(kind, rows, columns, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return BlockMatrix(torch.from_numpy(quants.quantize(values, GGMLQuantizationType[kind])), kind)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_both_kinds_multiply_alike(kind, rows, out_dtype, device):
    matrix, bias = blocks(kind, 33, 64).to(device), torch.randn(33, device=device).bfloat16()
    x = torch.randn(rows, 64, device=device).bfloat16()
    exact = x.double() @ matrix.values(torch.float32).double().T + bias.double()
    kept = make_linear(matrix, bias, torch.bfloat16)
    assert isinstance(kept, QuantLinear) and (kept.num_out, kept.num_in) == (33, 64)
    for linear in (kept, DenseLinear(matrix, bias, torch.bfloat16)):
        found = linear(x, out_dtype)
        assert found.dtype == (out_dtype or torch.bfloat16)
        assert_close(found.float(), exact.float(), torch.bfloat16)


def test_float32_activations_take_the_dense_weight():
    assert isinstance(make_linear(blocks("Q4_1", 8, 32), None, torch.float32), DenseLinear)


def test_fused_matrices_stay_in_blocks_when_all_are_alike():
    parts = [blocks("Q4_1", 8, 64), blocks("Q4_1", 5, 64, seed=1)]
    both = fused(parts, torch.float32)
    assert isinstance(both, BlockMatrix)
    values = torch.cat([part.values(torch.float32) for part in parts])
    assert torch.equal(both.values(torch.float32), values)
    mixed = fused([parts[0], parts[1].values(torch.float32)], torch.float32)
    assert torch.equal(mixed, values)
