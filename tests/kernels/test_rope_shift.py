"""Turning and writing keys: the kernels against float64, their references and each other."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.kernels.rotary import launch as rope_shift
from keyturn.kernels.rotary import reference

from ..tolerance import ONE_ROUNDING
from .conftest import IS_INTERPRETED

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (head_dim, rotary_dim): all of the head, an odd power, and partial rotary with and without one.
HEADS = [(64, 64), (96, 96), (128, 128), (128, 32), (80, 24)]
# One, odd, and around the tile: 64 rows of 64 bfloat16; the third program of 129 has one row.
NUM_ROWS = [1, 3, 17, 31, 32, 33, 63, 64, 65, 128, 129]
NUM_LAYERS = 2
OPS = [reference, rope_shift]


@pytest.fixture(params=OPS, ids=["reference", "triton"])
def ops(request):
    return request.param


def allowed(exact, source):
    """One rounding to the dtype over the arithmetic in float32, for every element."""
    rounding = ONE_ROUNDING[source.dtype]
    if IS_INTERPRETED and source.dtype == torch.bfloat16:
        rounding *= 2  # the interpreter truncates to bfloat16, hardware rounds
    return rounding * exact.abs() + 4 * 2**-24 * source.double().norm(dim=-1, keepdim=True)


def rotated_in_float64(keys, cos, sin, interleaved):
    """Rotate (..., n, head_dim) by (n, rotary_dim / 2) angles, by complex multiplication."""
    half = cos.shape[-1]
    turned, tail = keys.double().split([2 * half, keys.shape[-1] - 2 * half], -1)
    pairs = turned.unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    turn = torch.complex(cos.double(), sin.double())
    pairs = torch.view_as_real(torch.complex(pairs[..., 0], pairs[..., 1]) * turn)
    return torch.cat([(pairs if interleaved else pairs.transpose(-1, -2)).flatten(-2), tail], -1)


def random(*shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def angles(num_rows, rotary_dim, device, seed=1):
    """Angles of any size, and a factor as YaRN has."""
    turn = 1e4 * random(num_rows, rotary_dim // 2, device="cpu", seed=seed).double()
    return [(part * 1.07).float().to(device) for part in (turn.cos(), turn.sin())]


def some_slots(num_rows, num_slots, device, seed=2):
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(seed))
    return order[:num_rows].to(device)


def guarded(*shape, device, dtype):
    """A cache full of NaN inside a larger piece of memory full of NaN, and that memory."""
    guard, size = 1024, torch.Size(shape).numel()
    memory = torch.full((size + 2 * guard,), float("nan"), device=device, dtype=dtype)
    return memory[guard : guard + size].view(shape), memory


def shuffled(cos, sin):
    """Positions, and tables in which they find the angles given in another order."""
    positions = torch.randperm(len(cos), device=cos.device)
    tables = torch.empty(2, *cos.shape, device=cos.device)
    tables[:, positions] = torch.stack([cos, sin])
    return positions, *tables


def check_turn(ops, device, num_rows, num_kv_heads, head_dim, rotary_dim, dtype, interleaved):
    num_slots = num_rows + 5
    shape = (NUM_LAYERS, num_kv_heads, num_slots, head_dim)
    slots = some_slots(num_rows, num_slots, device)
    unrotated = torch.full(shape, float("nan"), device=device, dtype=dtype)
    keys = random(NUM_LAYERS, num_kv_heads, num_rows, head_dim, device=device, dtype=dtype)
    unrotated[:, :, slots] = keys
    rotated, memory = guarded(*shape, device=device, dtype=dtype)
    cos, sin = angles(num_rows, rotary_dim, device)
    ops.rope_shift(unrotated, rotated, slots, *shuffled(cos, sin), interleaved)
    found, exact = rotated[:, :, slots], rotated_in_float64(keys, cos, sin, interleaved)
    assert ((found.double() - exact).abs() <= allowed(exact, keys)).all()
    assert torch.equal(found[..., rotary_dim:], keys[..., rotary_dim:])
    assert torch.equal(unrotated[:, :, slots], keys)
    assert memory.isnan().sum() == memory.numel() - found.numel()  # and nothing else was written


@pytest.mark.parametrize("num_kv_heads", [1, 3, 8])
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_turned_keys_are_exact_to_one_rounding_for_any_number_of_rows(
    ops, device, num_rows, num_kv_heads
):
    check_turn(ops, device, num_rows, num_kv_heads, 64, 64, torch.bfloat16, False)


@pytest.mark.parametrize("num_rows", [39, 40, 41, 129])
def test_turned_keys_are_exact_where_slots_are_many_groups(device, num_rows):
    tile = rope_shift.TURN_TILE._replace(grouped_slots=20)
    ops = SimpleNamespace(rope_shift=partial(rope_shift.turn, tile=tile))
    check_turn(ops, device, num_rows, 3, 64, 64, torch.float32, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), HEADS)
def test_turned_keys_are_exact_to_one_rounding_for_any_head(
    ops, device, head_dim, rotary_dim, interleaved, dtype
):
    check_turn(ops, device, 17, 3, head_dim, rotary_dim, dtype, interleaved)


def test_turning_no_rows_changes_nothing(ops, device):
    cache = random(2, 2, 4, 8, device=device)
    before, none = cache.clone(), torch.zeros(0, dtype=torch.int64, device=device)
    ops.rope_shift(cache.clone(), cache, none, none, *angles(3, 8, device), False)
    assert torch.equal(cache, before)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_turning_again_from_the_source_equals_turning_once(data):
    device = torch.device("cpu" if IS_INTERPRETED else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=0 and no CUDA device")
    dtype = data.draw(st.sampled_from(DTYPES))
    interleaved = data.draw(st.booleans())
    head_dim = data.draw(st.sampled_from([8, 16, 24]))
    rotary_dim = data.draw(st.integers(1, head_dim // 2)) * 2
    num_slots = data.draw(st.integers(1, 40))
    cos, sin = angles(100, rotary_dim, device)
    unrotated = random(1, 2, num_slots, head_dim, device=device, dtype=dtype)
    edited, once = torch.zeros_like(unrotated), torch.zeros_like(unrotated)
    position_of = {}
    for _ in range(data.draw(st.integers(1, 4))):
        slots = data.draw(st.lists(st.integers(0, num_slots - 1), unique=True, max_size=num_slots))
        positions = data.draw(
            st.lists(st.integers(0, 99), min_size=len(slots), max_size=len(slots))
        )
        position_of.update(zip(slots, positions, strict=True))
        at, index = torch.tensor(positions, dtype=torch.int64), torch.tensor(slots).long()
        at, index = at.to(device), index.to(device)
        rope_shift.rope_shift(unrotated, edited, index, at, cos, sin, interleaved)
    index = torch.tensor([*position_of], dtype=torch.int64, device=device)
    at = torch.tensor([*position_of.values()], dtype=torch.int64, device=device)
    rope_shift.rope_shift(unrotated, once, index, at, cos, sin, interleaved)
    assert torch.equal(edited, once)


def check_write(ops, device, num_rows, num_heads, num_kv_heads, head, dtype, interleaved):
    head_dim, rotary_dim = head
    num_slots = num_rows + 5
    slots = some_slots(num_rows, num_slots, device)
    qkv = random(num_rows, num_heads + 2 * num_kv_heads, head_dim, device=device, dtype=dtype)
    cos, sin = angles(num_rows, rotary_dim, device)
    shape = (num_kv_heads, num_slots, head_dim)
    caches = [guarded(*shape, device=device, dtype=dtype) for _ in range(3)]
    unrotated, rotated, values = (cache for cache, _ in caches)
    queries = ops.write_rows(qkv, unrotated, rotated, values, slots, cos, sin, interleaved)
    sizes = [num_heads, num_kv_heads, num_kv_heads]
    given_queries, keys, given_values = qkv.transpose(0, 1).split(sizes)
    assert torch.equal(unrotated[:, slots], keys)
    assert torch.equal(values[:, slots], given_values)
    pairs = [(queries.transpose(0, 1), given_queries), (rotated[:, slots], keys)]
    for found, source in pairs:
        exact = rotated_in_float64(source, cos, sin, interleaved)
        assert found.dtype == dtype
        assert ((found.double() - exact).abs() <= allowed(exact, source)).all()
    for _, memory in caches:
        assert memory.isnan().sum() == memory.numel() - num_kv_heads * num_rows * head_dim


@pytest.mark.parametrize("heads", [(7, 1), (0, 3), (8, 8)], ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 4, 17, 64, 65, 129])
def test_written_rows_are_rotated_once_for_any_number_of_rows(ops, device, num_rows, heads):
    check_write(ops, device, num_rows, *heads, (64, 64), torch.bfloat16, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_written_rows_are_rotated_once_for_any_head(ops, device, head, interleaved, dtype):
    check_write(ops, device, 5, 6, 3, head, dtype, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_written_key_is_the_turned_key_bit_by_bit(ops, device, dtype, interleaved):
    qkv, slots = random(17, 6, 64, device=device, dtype=dtype), some_slots(17, 20, device)
    cos, sin = angles(17, 64, device)
    unrotated, rotated, values = torch.zeros(3, 2, 20, 64, device=device, dtype=dtype)
    ops.write_rows(qkv, unrotated, rotated, values, slots, cos, sin, interleaved)
    turned = torch.zeros_like(rotated)[None]
    ops.rope_shift(unrotated[None], turned, slots, *shuffled(cos, sin), interleaved)
    assert torch.equal(turned[0], rotated)


def test_a_rows_result_does_not_depend_on_the_others(ops, device):
    qkv, slots = random(129, 6, 64, device=device), some_slots(129, 200, device)
    cos, sin = angles(129, 64, device)
    caches = torch.zeros(3, 2, 200, 64, device=device)
    queries = ops.write_rows(qkv, *caches, slots, cos, sin, False)
    alone = torch.zeros(3, 2, 200, 64, device=device)
    for row in (slice(0, 1), slice(40, 44), slice(128, 129)):
        again = ops.write_rows(qkv[row], *alone, slots[row], cos[row], sin[row], False)
        assert torch.equal(again, queries[row])
        assert torch.equal(alone[:, :, slots[row]], caches[:, :, slots[row]])


def test_a_row_may_come_twice_if_it_is_the_same(ops, device):
    qkv = random(1, 6, 64, device=device).expand(9, -1, -1).contiguous()
    cos, sin = (part.expand(9, -1).contiguous() for part in angles(1, 64, device))
    caches = torch.zeros(3, 2, 4, 64, device=device)
    slots = torch.full((9,), 2, device=device)
    queries = ops.write_rows(qkv, *caches, slots, cos, sin, False)
    assert torch.equal(queries[0], queries[8])
    assert torch.equal(caches[2, :, 2], qkv[0, 4:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotated": torch.zeros(1, 2, 5, 8)}, "caches differ"),
        ({"rotated": torch.zeros(1, 2, 4, 8).half()}, "caches differ"),
        ({"rotated": torch.zeros(1, 2, 8, 4).transpose(2, 3)}, "must be contiguous"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "int32"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, r"positions \(3,\)"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, "int32"),
        ({"sin": torch.zeros(4, 4)}, r"\(4, 4\)"),
        ({"cos": torch.zeros(3, 5), "sin": torch.zeros(3, 5)}, r"\(3, 5\)"),
        ({"cos": torch.zeros(3, 4).double()}, "float64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, message):
    given_tensors = {
        "unrotated": torch.zeros(1, 2, 4, 8),
        "rotated": torch.zeros(1, 2, 4, 8),
        "slots": torch.arange(3),
        "positions": torch.arange(3),
        "cos": torch.zeros(3, 4),
        "sin": torch.zeros(3, 4),
    }
    with pytest.raises(ValueError, match=message):
        rope_shift.rope_shift(**{**given_tensors, **changes}, interleaved=False)


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(3, 3, 8), "4 heads"),
        (torch.zeros(3, 6, 8).half(), "float16"),
        (torch.zeros(2, 6, 8), "3 rows"),
        (torch.zeros(3, 6, 16), "heads of 8"),
        (torch.zeros(6, 3, 8).transpose(0, 1), "contiguous"),
    ],
)
def test_projections_that_do_not_fit_are_refused(qkv, message):
    with pytest.raises(ValueError, match=message):
        rope_shift.write_rows(
            qkv, *torch.zeros(3, 2, 4, 8), torch.arange(3), *torch.zeros(2, 3, 4), False
        )
