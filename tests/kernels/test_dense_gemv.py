"""Matrix-vector products in bf16 and fp16: float64, ragged shapes, row invariance, code."""

import pytest
import torch

from keyturn.kernels.matmul import dense as kernel
from keyturn.kernels.matmul.fusion import PLAIN
from keyturn.kernels.matmul.table import GemvTile, default_plan

from .ahead_of_time import Case, check_early, compile_all

TILES = [GemvTile(2, 64, 2, 1), GemvTile(8, 32, 1, 1), GemvTile(4, 128, 1, 1)]
# Norm of the difference over norm of the expected: float32 sums of exact products.
EXACT = 1e-6


def random(*shape, device, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def run(x, weight, bias=None, tile=TILES[1]):
    out = torch.full((len(x), len(weight)), torch.nan, device=x.device)
    for first in range(0, len(x), kernel.MAX_ROWS):
        part = slice(first, first + kernel.MAX_ROWS)
        kernel.gemv(x[part], weight, bias, out[part], tile, PLAIN)
    return out


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(
    ("rows", "num_out", "num_in"), [(1, 1, 1), (1, 33, 512), (3, 17, 3), (4, 9, 1032), (2, 129, 17)]
)
def test_equals_float64(device, dtype, tile, rows, num_out, num_in):
    x, weight = (
        random(count, num_in, device=device, dtype=dtype, seed=count) for count in (rows, num_out)
    )
    bias = random(num_out, device=device, dtype=torch.float32)
    expected = x.double() @ weight.double().T + bias.double()
    assert error(run(x, weight, bias, tile), expected) < EXACT


def test_public_call_takes_any_rows_leading_dimensions_and_dtypes(device):
    x, weight = random(2, 3, 64, device=device), random(40, 64, device=device)
    found = kernel.dense_gemv(x, weight)
    assert (found.shape, found.dtype) == ((2, 3, 40), torch.bfloat16)
    logits = kernel.dense_gemv(x, weight, out_dtype=torch.float32)
    assert error(logits, x.double() @ weight.double().T) < EXACT
    assert not torch.equal(logits, logits.bfloat16().float())
    assert kernel.dense_gemv(x[:0], weight).shape == (0, 3, 40)


def test_a_row_has_the_same_bits_whatever_its_batchmates(device):
    x, weight = random(4, 520, device=device), random(21, 520, device=device)
    together = run(x, weight)
    for count, firsts in ((1, (0, 3)), (2, (1,)), (3, (0, 1))):
        for first in firsts:
            assert torch.equal(run(x[first:][:count], weight), together[first:][:count])
    assert torch.equal(run(x, weight), together)  # and the next time


def test_error_when_an_argument_does_not_fit(device):
    x, weight = random(2, 64, device=device), random(16, 64, device=device)
    with pytest.raises(ValueError, match="4 rows of 64"):
        kernel.dense_gemv(x[:, :32], weight)
    with pytest.raises(ValueError, match="bf16 or fp16"):
        kernel.dense_gemv(x.float(), weight)
    with pytest.raises(ValueError, match="weight torch.float16"):
        kernel.dense_gemv(x, weight.half())
    with pytest.raises(ValueError, match="bias"):
        kernel.dense_gemv(x, weight, x[0])


# qkv, output, gate and up, down, head of Qwen2.5-Coder 1.5B and 7B.
SHAPES = [(2048, 1536), (17920, 1536), (1536, 8960), (151936, 1536), (4608, 3584), (3584, 18944)]


def case(shape, fused, rows=1):
    tile = default_plan(kernel.KIND, *shape).gemv
    halves = ("x", "weight", "bias", "gain", "residual", "out", "unrotated", "rotated", "values")
    types = dict.fromkeys(halves, "*bf16") | dict.fromkeys(("slots", "positions"), "*i64")
    types |= dict.fromkeys(("cos", "sin"), "*fp32") | {"eps": "fp32"}
    heads = {"NUM_HEADS": 12, "NUM_KV_HEADS": 2, "HEAD_DIM": 128, "HALF": 64}
    constants = {"HAS_BIAS": True, "NORM": fused in ("gated", "cache"), "GATED": fused == "gated"}
    constants |= {"HAS_RESIDUAL": fused == "residual", "INTERLEAVED": False, "ROWS": rows}
    constants |= heads if fused == "cache" else dict.fromkeys(heads, 0)
    constants |= {"BLOCK_N": tile.block_n, "BLOCK_K": tile.block_u * kernel.UNIT, "EARLY": True}
    return Case(
        "keyturn.kernels.matmul.dense_device",
        "dense_gemv_kernel",
        types | dict.fromkeys(("n", "k", "x_stride", "num_slots"), "i32"),
        constants,
        ["k", "x_stride"],
        {"num_warps": tile.num_warps},
    )


@pytest.mark.slow
def test_kernels_compile_to_wide_loads_that_stay_in_their_thread():
    cases = [case(SHAPES[0], "cache"), case(SHAPES[1], "gated"), case(SHAPES[2], "residual")]
    cases += [case(shape, "") for shape in SHAPES[3:]] + [case(SHAPES[4], "cache", rows=4)]
    for of_case, compiled in zip(cases, compile_all(cases), strict=True):
        for one in compiled:
            assert one.num_spilled_bytes == 0, of_case
            assert one.num_shared_bytes <= 128  # only the last sum passes shared memory
            weights = [line for line in one.ptx.splitlines() if "evict_first" in line]
            loads = [line for line in weights if "ld.global" in line]
            assert loads
            assert all(".v4.b32" in line for line in loads)
            check_early(one)
