"""Which kernel the rows of a pass get on a GPU, and that all give what the CPU's path gives."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from keyturn.engine.model.attention import (
    CausalBlocks,
    CausalSequence,
    ComparedPositions,
    Masked,
    MaskedOnGpu,
    attend,
    causal_bias,
    many_on_gpu,
    seen_in_order,
    visibility,
)
from keyturn.kernels.attention.many_rows_gpu import attend_by_position, position_bias
from keyturn.kernels.attention.reference import attend_slots

from ..tolerance import assert_close

CPU = torch.device("cpu")
ORDERED = np.arange(40)
# A line of three tokens was inserted at 10: its rows are the last slots.
EDITED = np.concatenate([np.arange(10), np.arange(13, 40), np.arange(10, 13)])


def on_gpu(slots, positions, dtype=torch.bfloat16):
    """Return what `visibility` returns on a GPU, with its tensors on the CPU."""
    known = torch.from_numpy(positions[slots]), torch.from_numpy(positions)
    return many_on_gpu(slots, positions, known, dtype)


def slots_of(positions, *wanted):
    at = {position: slot for slot, position in enumerate(positions.tolist())}
    return np.array([at[position] for position in wanted])


PASSES = {
    "prefill": (np.arange(40), ORDERED),
    "second chunk": (np.arange(25, 40), ORDERED),
    "chunk before later rows": (np.arange(10, 25), ORDERED),
    "healing after an insertion": (slots_of(EDITED, *range(11, 40)), EDITED),
    "inserted rows": (slots_of(EDITED, 10, 11, 12), EDITED),
    "inserted rows and the last": (slots_of(EDITED, 10, 11, 12, 39), EDITED),
    "rows with gaps": (np.array([3, 9, 30]), ORDERED),
    "rows backwards": (np.arange(39, 20, -1), ORDERED),
    "a row twice": (np.array([38, 39, 39]), ORDERED),
    "the last row": (np.array([39]), ORDERED),
}


def ways(slots, positions):
    """Return every way that rows are attended from, with the dtype that it is for."""
    bf16, fp32 = torch.bfloat16, torch.float32
    return [
        (on_gpu(slots, positions), bf16),
        (on_gpu(slots, positions, fp32), fp32),
        (visibility(slots, positions, bf16, CPU), bf16),
        (visibility(slots, positions, fp32, CPU), fp32),
        (visibility(slots, positions, fp32, CPU, attend_slots), fp32),
    ]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
@pytest.mark.parametrize(("slots", "positions"), PASSES.values(), ids=PASSES)
def test_every_way_gives_what_attention_by_position_gives(slots, positions, heads):
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(len(slots), heads[0], 8, generator=random).bfloat16().float()
    # A layer of a cache has room behind the slots in use.
    keys, values = torch.randn(2, heads[1], len(positions) + 5, 8, generator=random).bfloat16()
    keys, values = keys.float(), values.float()
    bias = causal_bias(
        torch.from_numpy(positions[slots]), torch.from_numpy(positions), torch.float32
    )
    wanted = torch.empty(len(slots), len(positions))
    used = len(positions)
    expected = attend(queries, keys[:, :used], values[:, :used], bias, wanted)
    for seen, dtype in ways(slots, positions):
        assert seen.row_positions.tolist() == positions[slots].tolist()
        case = queries.to(dtype), keys.to(dtype), values.to(dtype)
        assert_close(seen.attend(*case), expected, dtype)
        weights = torch.empty_like(wanted)
        assert_close(seen.attend(*case, weights), expected, dtype)
        assert_close(weights, wanted, dtype)


@pytest.mark.parametrize(
    ("name", "num_ordered", "is_gathered", "is_masked"),
    [
        ("prefill", 40, False, False),
        ("second chunk", 40, False, False),
        ("chunk before later rows", 25, False, False),
        ("healing after an insertion", 40, True, False),
        ("inserted rows", 13, True, False),
        ("inserted rows and the last", 0, False, True),
        ("rows with gaps", 0, False, True),
        ("rows backwards", 0, False, True),
        ("a row twice", 0, False, True),
        ("the last row", 0, False, False),
    ],
)
def test_rows_in_order_take_the_causal_kernel(name, num_ordered, is_gathered, is_masked):
    seen = on_gpu(*PASSES[name])
    assert isinstance(seen, CausalSequence if num_ordered else MaskedOnGpu)
    if isinstance(seen, CausalSequence):
        assert seen.num_seen == num_ordered
        assert (seen.order is not None) == is_gathered
    else:
        assert (seen.bias is not None) == is_masked


def test_float32_has_no_causal_kernel_on_a_gpu():
    assert isinstance(on_gpu(*PASSES["prefill"], torch.float32), MaskedOnGpu)


def test_few_rows_get_the_kernel_that_compares_positions_where_there_is_one():
    for rows, kind in ((1, ComparedPositions), (64, ComparedPositions), (65, CausalBlocks)):
        slots = np.arange(rows)
        seen = visibility(slots, np.arange(90), torch.bfloat16, CPU, attend_slots)
        assert isinstance(seen, kind)


def test_on_the_cpu_a_pass_of_few_rows_is_masked():
    slots, positions = PASSES["inserted rows"]
    seen = visibility(slots, positions, torch.bfloat16, CPU)
    assert isinstance(seen, Masked)
    assert seen.slot_positions.tolist() == positions.tolist()
    expected = causal_bias(seen.row_positions, seen.slot_positions, torch.bfloat16)
    assert torch.equal(seen.bias, expected)


def test_rows_out_of_sight_are_not_among_the_slots_seen():
    positions = ORDERED.copy()
    positions[30:] += 1 << 40
    assert seen_in_order(np.arange(20, 30), positions).tolist() == list(range(30))


def test_on_the_cpu_many_rows_in_order_take_the_causal_path():
    slots, positions = PASSES["healing after an insertion"]
    seen = visibility(slots, positions, torch.bfloat16, CPU)
    assert isinstance(seen, CausalBlocks)
    assert seen.order.order.tolist() == slots_of(positions, *range(40)).tolist()
    slots, positions = PASSES["rows backwards"]
    assert isinstance(visibility(slots, positions, torch.bfloat16, CPU), Masked)


class KeyStrides(TorchFunctionMode):
    """Notes how far apart torch's fused attention finds the keys of two heads."""

    def __init__(self):
        super().__init__()
        self.between_heads = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            self.between_heads.append(args[1].stride(1))
        return func(*args, **(kwargs or {}))


def in_the_middle(rows, num_slots, heads, dtype, device):
    """Return queries, keys, values and mask of rows that slots at later positions follow."""
    random = torch.Generator().manual_seed(rows)
    queries = torch.randn(rows, heads[0], 64, generator=random).to(device, dtype)
    both = torch.randn(2, heads[1], num_slots + 99, 64, generator=random).to(device, dtype)
    keys, values = both[:, :, :num_slots]
    positions = torch.randperm(num_slots, generator=random).to(device)
    row_positions = positions[num_slots - rows :].sort().values
    return queries, keys, values, position_bias(row_positions, positions, dtype)


@pytest.mark.parametrize("heads", [(4, 2), (6, 2), (3, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 32, 33, 64, 65, 97, 129])
def test_a_row_alone_in_its_block_of_the_masked_kernel_has_keys_of_its_own(rows, heads):
    # Torch's kernel would take it for one query over one key head, under the first row's mask.
    queries, keys, values, bias = in_the_middle(rows, 137, heads, torch.float32, CPU)
    with KeyStrides() as seen:
        found = attend_by_position(queries, keys, values, bias)
    assert rows % 32 != 1 or 0 not in seen.between_heads
    assert_close(found, attend(queries, keys, values, bias, None), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(9, 3), (6, 2), (8, 1), (4, 4)], ids=str)
def test_masked_attention_on_a_gpu_is_that_of_float64(heads, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for num_slots in (97, 811, 816):
        for rows in (1, 2, 31, 32, 33, 63, 64, 65, 66, 96, 97):
            case = in_the_middle(rows, num_slots, heads, dtype, torch.device("cuda"))
            expected = attend(*(part.double() for part in case), None)
            found = attend_by_position(*case)
            for row in range(rows):
                assert_close(found[row], expected[row], dtype)
