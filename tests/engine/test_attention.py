"""Which kernel the rows of a pass get on a GPU, and that all give what the CPU's path gives."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from keyturn.engine.model import attention
from keyturn.engine.model.attention import attend, attend_on_gpu, causal_bias, look, seen_in_order
from keyturn.kernels.attention.many_rows_cpu import CausalOrder
from keyturn.kernels.attention.many_rows_gpu import attend_by_position, position_bias

from ..tolerance import assert_close

CPU = torch.device("cpu")
ORDERED = np.arange(40)
# A line of three tokens was inserted at 10: its rows are the last slots.
EDITED = np.concatenate([np.arange(10), np.arange(13, 40), np.arange(10, 13)])


def sight_on_gpu(slots, positions, dtype=torch.bfloat16):
    """Return what `look` returns on a GPU, with its tensors on the CPU."""
    on_cpu = look(slots, positions, torch.float32, CPU)
    return attention._look_on_gpu(
        slots, positions, on_cpu.row_positions, on_cpu.slot_positions, dtype
    )


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


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
@pytest.mark.parametrize(("slots", "positions"), PASSES.values(), ids=PASSES)
def test_every_pass_gives_what_attention_by_position_gives(slots, positions, heads):
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(len(slots), heads[0], 8, generator=random).bfloat16()
    keys, values = torch.randn(2, heads[1], len(positions), 8, generator=random).bfloat16()
    found = attend_on_gpu(queries, keys, values, sight_on_gpu(slots, positions))
    bias = causal_bias(
        torch.from_numpy(positions[slots]), torch.from_numpy(positions), torch.float32
    )
    expected = attend(queries.float(), keys.float(), values.float(), bias, None)
    assert_close(found, expected, torch.bfloat16)


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
    sight = sight_on_gpu(*PASSES[name])
    assert sight.num_ordered == num_ordered
    assert (sight.order is not None) == is_gathered
    assert (sight.bias is not None) == is_masked


def test_float32_has_no_causal_kernel_on_a_gpu():
    assert sight_on_gpu(*PASSES["prefill"], torch.float32).bias is not None


def test_on_the_cpu_a_pass_of_few_rows_is_masked():
    slots, positions = PASSES["inserted rows"]
    sight = look(slots, positions, torch.bfloat16, CPU)
    assert sight.row_positions.tolist() == positions[slots].tolist()
    assert sight.slot_positions.tolist() == positions.tolist()
    expected = causal_bias(sight.row_positions, sight.slot_positions, torch.bfloat16)
    assert torch.equal(sight.bias, expected)


def test_rows_out_of_sight_are_not_among_the_slots_seen():
    positions = ORDERED.copy()
    positions[30:] += 1 << 40
    assert seen_in_order(np.arange(20, 30), positions).tolist() == list(range(30))


def test_on_the_cpu_many_rows_in_order_take_the_causal_path():
    slots, positions = PASSES["healing after an insertion"]
    sight = look(slots, positions, torch.bfloat16, CPU)
    assert isinstance(sight.bias, CausalOrder)
    assert sight.bias.order.tolist() == slots_of(positions, *range(40)).tolist()
    slots, positions = PASSES["rows backwards"]
    assert isinstance(look(slots, positions, torch.bfloat16, CPU).bias, torch.Tensor)


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
