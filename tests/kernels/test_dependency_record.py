"""The dependency record: attention, mean over heads, against float64; its largest entries."""

import itertools

import pytest
import torch
import triton

from keyturn.engine.model.attention import attend, causal_bias
from keyturn.kernels.attention import dependency as kernel
from keyturn.kernels.attention import reference
from keyturn.kernels.attention.dependency import Tile, largest_entries, record_dependencies

from .ahead_of_time import Case, compile_all
from .conftest import IS_INTERPRETED

ALLOWED = 1e-5  # scores and shares are float32 throughout
SMALL = Tile(block_m=32, block_n=64, num_warps=4, num_stages=2)
# (KV heads, group, head_dim)
HEADS = [(2, 1, 64), (1, 3, 80), (1, 4, 128), (2, 7, 64)]
# (heads, rows, slots)
SHAPES = (
    [(HEADS[0], 1, 1), (HEADS[1], 17, 129), (HEADS[2], 3, 64), (HEADS[3], 33, 65)]
    if IS_INTERPRETED
    else [*itertools.product(HEADS, [1, 3, 17, 129], [1, 3, 64, 129])]
)
OPS = [reference, kernel]


def make(heads, num_rows, num_slots, device, dtype=torch.bfloat16):
    """Queries, keys as the first slots of a larger cache, and positions in random order."""
    num_kv_heads, group, head_dim = heads
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=random).to(device, dtype)

    keys = normal(num_kv_heads, num_slots + 3, head_dim)
    keys[:, num_slots:] = float("nan")
    slot_positions = torch.randperm(num_slots, generator=random)
    row_positions = torch.randint(num_slots, (num_rows,), generator=random)
    queries = normal(num_rows, num_kv_heads * group, head_dim)
    return queries, keys[:, :num_slots], row_positions.to(device), slot_positions.to(device)


def exact(queries, keys, *positions):
    mean = torch.zeros(len(queries), keys.shape[1], dtype=torch.float64, device=keys.device)
    reference.record_dependencies(queries.double(), keys.double(), *positions, mean)
    return mean


def error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("has_sums", [True, False], ids=["sums", "no sums"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_equals_float64(device, shape, has_sums):
    for dtype in (torch.bfloat16, torch.float32):
        made = make(*shape, device, dtype)
        mean = torch.full((shape[1], shape[2] + 1), torch.nan, device=device)
        sums = reference.log_sums(*made) if has_sums else None
        record_dependencies(*made, mean[:, :-1], sums=sums, tile=SMALL)
        assert error(mean[:, :-1], exact(*made)) < ALLOWED
        assert mean[:, -1].isnan().all()


@pytest.mark.parametrize("shape", SHAPES[-2:], ids=str)
def test_log_sums_equal_the_reference(device, shape):
    made = make(*shape, device)
    found, expected = kernel.log_sums(*made, tile=SMALL), reference.log_sums(*made)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("ops", OPS, ids=["reference", "triton"])
def test_layers_add_up_by_their_shares(device, ops):
    layers = [make(HEADS[1], 5, 70, device, torch.float32) for _ in range(2)]
    layers[1] = (2 * layers[1][0], *layers[1][1:])
    mean = torch.full((5, 70), torch.nan, device=device)
    ops.record_dependencies(*layers[0], mean, share=0.25)
    ops.record_dependencies(*layers[1], mean, share=0.75, add=True)
    assert error(mean, 0.25 * exact(*layers[0]) + 0.75 * exact(*layers[1])) < ALLOWED
    assert torch.allclose(mean.sum(1), torch.ones(5, device=device))


def test_rows_in_order_leave_the_upper_half_zero(device):
    queries, keys, _, _ = make((1, 1, 64), 130, 130, device)
    order = torch.arange(130, device=device)
    mean = torch.full((130, 130), torch.nan, device=device)
    record_dependencies(queries, keys, order, order.int(), mean, tile=SMALL)
    assert not mean.triu(1).any()
    assert torch.allclose(mean.sum(1), torch.ones(130, device=device))
    before = mean.clone()
    record_dependencies(queries, keys, order, order.int(), mean, tile=SMALL, add=True)
    assert torch.equal(mean, 2 * before)


def test_a_row_does_not_depend_on_the_others(device):
    queries, keys, rows, slots = make(HEADS[1], 40, 70, device)
    mean = torch.empty(40, 70, device=device)
    record_dependencies(queries, keys, rows, slots, mean, tile=SMALL)
    for part in (slice(0, 1), slice(7, 40)):
        alone = torch.empty_like(mean[part])
        record_dependencies(queries[part], keys, rows[part], slots, alone, tile=SMALL)
        if IS_INTERPRETED:
            # numpy's product of a tile may sum a row in another order at another place in it.
            torch.testing.assert_close(alone, mean[part], atol=1e-6, rtol=0)
        else:
            assert torch.equal(alone, mean[part])


def test_it_is_what_the_engine_records(device):
    queries, keys, rows, slots = make((2, 3, 64), 20, 70, device, torch.float32)
    weights = torch.empty(20, 70, device=device)
    attend(queries, keys, keys, causal_bias(rows, slots, torch.float32), weights)
    assert error(weights, exact(queries, keys, rows, slots)) < ALLOWED


# Largest entries


def as_dense(entries, num_slots):
    indices, values = entries
    dense = torch.zeros(len(indices), num_slots, device=values.device)
    return dense.scatter_add(1, indices.long(), values.float())


def random_mean(num_rows, num_slots, device):
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(num_rows, num_slots, generator=random).mul(3).softmax(-1)
    return mean.to(device)


@pytest.mark.parametrize("ops", OPS, ids=["reference", "triton"])
@pytest.mark.parametrize(
    ("num_rows", "num_slots", "num_entries"),
    [(3, 129, 64), (2, 65, 64), (2, 64, 64), (3, 17, 64), (1, 1, 64), (3, 1000, 64), (2, 300, 5)],
)
def test_the_largest_entries_are_kept(device, ops, num_rows, num_slots, num_entries):
    mean = random_mean(num_rows, num_slots, device)
    indices, values = ops.largest_entries(mean, num_entries)
    assert indices.shape == values.shape == (num_rows, num_entries)
    assert indices.dtype == torch.int32 and values.dtype == torch.float16
    assert ((indices >= 0) & (indices < num_slots)).all()
    found = as_dense((indices, values), num_slots)
    least = mean.topk(min(num_entries, num_slots)).values[:, -1:]
    # What one step of float16 apart may change places; nothing else may be missing or too much.
    assert (found[mean > least * (1 + 2**-10)] > 0).all()
    assert (found[mean < least * (1 - 2**-10)] == 0).all()
    kept = found > 0
    assert (kept.sum(1) <= num_entries).all()
    is_large = mean >= mean.topk(min(num_entries, num_slots)).values[:, -1:].clamp(min=2**-24)
    assert (kept.sum(1) >= is_large.sum(1)).all()  # what is less is 0 in float16
    assert torch.allclose(found[kept], mean[kept], rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("ops", OPS, ids=["reference", "triton"])
def test_rows_with_few_entries_end_in_zeros(device, ops):
    mean = torch.zeros(3, 200, device=device)
    mean[1, 150], mean[2, ::2] = 1.0, 0.01
    indices, values = ops.largest_entries(mean)
    assert ((values > 0).sum(1) == torch.tensor([0, 1, 64], device=device)).all()
    assert as_dense((indices, values), 200)[1, 150] == 1
    assert ((indices >= 0) & (indices < 200)).all()


def test_of_equal_entries_the_first_are_kept_in_order(device):
    mean = torch.full((2, 300), 0.25, device=device)
    mean[1, 200] = 3.0  # three layers without shares add up to more than 1
    indices, values = largest_entries(mean)
    assert indices[0].tolist() == [*range(64)]
    assert indices[1].tolist() == [*range(63), 200]
    assert values[1].tolist() == [0.25] * 63 + [3.0]


def test_a_view_is_read_by_its_rows(device):
    mean = random_mean(3, 400, device)
    for found, expected in zip(
        largest_entries(mean[:, 100:300]), largest_entries(mean[:, 100:300].clone()), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_does_not_fit_is_refused(device):
    made = make(HEADS[1], 4, 20, device)
    mean = torch.empty(4, 20, device=device)
    queries, keys, rows, slots = made
    for arguments, options in [
        ((queries.float(), keys, rows, slots, mean), {}),
        ((queries[:, :2].contiguous(), torch.cat([keys, keys]), rows[:3], slots, mean), {}),
        ((queries, keys, rows.float(), slots, mean), {}),
        ((queries, keys, rows, slots[:5], mean), {}),
        ((queries, keys, rows, slots, mean[:, :5]), {}),
        ((*made, mean), {"sums": torch.empty(4, 3, device=device)}),
    ]:
        with pytest.raises(ValueError):
            record_dependencies(*arguments, **options)
    with pytest.raises(ValueError):
        largest_entries(mean.double())


# Ahead-of-time compilation


def tile_case(name, dtype, head_dim, **constants):
    tile = kernel.default_tile(head_dim, {"bf16": 2, "fp16": 2, "fp32": 4}[dtype])
    types = {part: f"*{dtype}" for part in ("queries", "keys")}
    types |= {"row_positions": "*i64", "slot_positions": "*i64", "log_sums": "*fp32"}
    types |= {part: "i32" for part in ("num_rows", "num_slots", "head_slots")} | {"scale": "fp32"}
    if name == "mean_kernel":
        types |= {"mean": "*fp32", "factor": "fp32", "row_stride": "i32", "num_heads": "i32"}
    sizes = {"GROUP": 3, "HEAD_DIM": head_dim, "HEAD_PAD": triton.next_power_of_2(head_dim)}
    sizes |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STAGES": tile.num_stages}
    return Case(
        "keyturn.kernels.attention.dependency_device",
        name,
        types,
        sizes | {"WIDEN": False} | constants,
        options={"num_warps": tile.num_warps},
    )


def select_case(block):
    return Case(
        "keyturn.kernels.attention.dependency_device",
        "largest_kernel",
        {"weights": "*fp32", "indices": "*i32", "values": "*fp16"}
        | {"num_slots": "i32", "row_stride": "i32"},
        {"NUM_ENTRIES": 64, "ENTRIES_PAD": 64, "BLOCK": block, "LOW_BIT": 13},
        options={"num_warps": kernel.select_warps(block)},
    )


def test_all_kernels_compile_without_spilling():
    heads = [("bf16", 64), ("fp16", 80), ("bf16", 128), ("bf16", 256), ("fp32", 128)]
    cases = [tile_case("mean_kernel", *head, ADD=head[1] == 64) for head in heads]
    cases += [tile_case("log_sums_kernel", *head) for head in heads]
    cases += [select_case(block) for block in (128, 2048, 8192)]
    for case, of_case in zip(cases, compile_all(cases), strict=True):
        for compiled in of_case:
            assert compiled.num_spilled_bytes == 0, case
            assert compiled.num_shared_bytes <= 160 << 10, case  # an A100 has 163 KB a program
