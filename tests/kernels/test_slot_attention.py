"""Attention over slots against float64: ragged shapes, arbitrary order, invariance, determinism."""

import itertools

import pytest
import torch
import triton

from keyturn.engine.model.attention import attend, causal_bias
from keyturn.kernels.attention import reference
from keyturn.kernels.attention import slots_tiles as tiles
from keyturn.kernels.attention.slots import attend_slots
from keyturn.kernels.attention.slots_tiles import Cut, Tile, cut_for
from keyturn.kernels.attention.slots_workspace import workspace_for, workspace_of_call

from .conftest import IS_INTERPRETED

# Norm of the difference over norm of the expected: results, and on the dot path shares, are rounded
# to the dtype; the interpreter rounds bfloat16 towards zero.
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 7e-3, torch.float16: 1e-3}
# Small blocks, so that few slots are several blocks and splits.
SMALL = Tile(num_bytes=4096, num_warps=4, num_stages=2, programs=2)
SMALL_WIDE = SMALL._replace(programs=4, num_rows=64)
# As many programs as a GPU has for two KV heads: two of them share a KV head's query heads.
HALVED = SMALL._replace(programs=32)
CAPACITY = 150
# (KV heads, group, head_dim)
HEADS = [(4, 1, 64), (2, 3, 80), (1, 4, 128), (2, 7, 64)]
ALL_SHAPES = list(itertools.product(HEADS, [1, 3, 17], [1, 3, 64, 129]))
# The interpreter takes seconds for what is in many blocks.
FEW_SHAPES = [
    ((4, 1, 64), 3, 129),
    ((2, 3, 80), 1, 64),
    ((2, 3, 80), 3, 129),
    ((1, 1, 128), 17, 17),
    ((1, 7, 64), 3, 33),
    ((2, 1, 64), 1, 129),
]


def random(*shape, device, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def make_cache(heads, num_slots, device, dtype, capacity=CAPACITY):
    """Keys and values whose unused slots are NaN, and positions in random order."""
    num_kv_heads, _, head_dim = heads
    keys, values = (
        random(num_kv_heads, capacity, head_dim, device=device, dtype=dtype, seed=seed)
        for seed in (1, 2)
    )
    keys[:, num_slots:] = values[:, num_slots:] = float("nan")
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(3))
    positions = torch.full((capacity,), -1)
    positions[:num_slots] = order
    return keys, values, positions.to(device)


def make_queries(heads, num_rows, device, dtype):
    return random(num_rows, heads[0] * heads[1], heads[2], device=device, dtype=dtype)


def run(
    queries, keys, values, num_slots, *positions,
    with_weights=False, path=None, tile=None, **options,
):  # fmt: skip
    """Attend into poisoned memory."""
    out = torch.full_like(queries, torch.nan)
    (num_rows, num_heads, _), num_kv_heads = queries.shape, len(keys)
    of_default = tiles.default_path(num_rows, num_heads // num_kv_heads, keys.itemsize)
    tile = tile or (SMALL_WIDE if (path or of_default) == "wide" else SMALL)
    workspace = workspace_for(
        keys, num_rows, num_heads, with_weights=with_weights, path=path or of_default, tile=tile
    )
    for part in (workspace.sums, workspace.largest, workspace.totals, workspace.log_sums):
        part.fill_(torch.nan)
    workspace.scores.fill_(torch.nan)
    done = attend_slots(
        queries, keys, values, num_slots, *positions,
        out=out, workspace=workspace, path=path, tile=tile, **options,
    )  # fmt: skip
    assert done is out
    assert not workspace.locks.any()
    return out


def exact(queries, keys, values, num_slots, *positions, **options):
    wide = [part.double() for part in (queries, keys, values)]
    return reference.attend_slots(*wide, num_slots, *positions, **options)


def error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected).norm() / expected.norm()).item()


def row_positions(num_rows, num_slots, device):
    """Positions of rows somewhere in the cache, the last one at its end."""
    generator = torch.Generator().manual_seed(4)
    positions = torch.randint(num_slots, (num_rows,), generator=generator)
    positions[-1] = num_slots - 1
    return positions.to(device)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize(
    ("heads", "num_slots"), [*zip(HEADS, (129, 64, 17, 1), strict=True), (HEADS[0], 1)], ids=str
)
def test_one_row_that_sees_all_equals_float64(device, heads, num_slots, dtype):
    cache = make_cache(heads, num_slots, device, dtype)[:2]
    queries = make_queries(heads, 1, device, dtype)
    found = run(queries, *cache, num_slots)
    assert error(found, exact(queries, *cache, num_slots)) < ALLOWED[dtype]


@pytest.mark.parametrize(
    ("heads", "num_rows", "num_slots"), FEW_SHAPES if IS_INTERPRETED else ALL_SHAPES, ids=str
)
def test_rows_see_slots_by_position(device, heads, num_rows, num_slots):
    for dtype in (torch.bfloat16, torch.float32):
        *cache, slot_positions = make_cache(heads, num_slots, device, dtype)
        queries = make_queries(heads, num_rows, device, dtype)
        positions = row_positions(num_rows, num_slots, device)
        weights = torch.full((num_rows, CAPACITY), torch.nan, device=device)
        expected_weights = weights.clone()
        found = run(
            queries, *cache, num_slots, positions, slot_positions.int(),
            weights=weights, with_weights=True,
        )  # fmt: skip
        expected = exact(
            queries, *cache, num_slots, positions, slot_positions, weights=expected_weights
        )
        assert error(found, expected) < ALLOWED[dtype]
        used = slice(num_slots)
        assert error(weights[:, used], expected_weights[:, used].double()) < 1e-5
        assert weights[:, num_slots:].isnan().all()


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize(
    ("heads", "num_rows"),
    [((1, 1, 64), 65 if IS_INTERPRETED else 129), ((1, 3, 80), 23)],
    ids=str,
)
def test_many_rows_equal_float64(device, heads, num_rows, dtype):
    num_slots = 129
    *cache, slot_positions = make_cache(heads, num_slots, device, dtype)
    queries = make_queries(heads, num_rows, device, dtype)
    positions = row_positions(num_rows, num_slots, device)
    expected = exact(queries, *cache, num_slots, positions, slot_positions)
    for path in ("dot", None) if dtype.itemsize == 2 else ("dot",):
        found = run(queries, *cache, num_slots, positions, slot_positions, path=path)
        assert error(found, expected) < ALLOWED[dtype]


@pytest.mark.parametrize("num_slots", [15, 16, 17, 127, 128, 130])
@pytest.mark.parametrize("heads", [(1, 1, 64), (1, 3, 64)], ids=str)
def test_slots_around_the_edges_of_blocks_and_splits(device, heads, num_slots):
    cache = make_cache(heads, num_slots, device, torch.float32)[:2]
    queries = make_queries(heads, 1, device, torch.float32)
    found = run(queries, *cache, num_slots)
    assert error(found, exact(queries, *cache, num_slots)) < ALLOWED[torch.float32]


def test_the_reference_equals_the_engine(device):
    heads, num_slots, num_rows = (2, 3, 64), 65, 5
    keys, values, slot_positions = make_cache(heads, num_slots, device, torch.float32)
    queries = make_queries(heads, num_rows, device, torch.float32)
    positions = row_positions(num_rows, num_slots, device)
    weights, of_engine = (torch.empty(num_rows, num_slots, device=device) for _ in range(2))
    bias = causal_bias(positions, slot_positions[:num_slots], torch.float32)
    expected = attend(queries, keys[:, :num_slots], values[:, :num_slots], bias, of_engine)
    found = reference.attend_slots(
        queries, keys, values, num_slots, positions, slot_positions, weights=weights
    )
    assert error(found, expected.double()) < ALLOWED[torch.float32]
    assert error(weights, of_engine.double()) < 1e-5


@pytest.mark.parametrize(
    ("path", "heads", "num_rows", "tile"),
    [
        ("dot", (2, 1, 64), 15, None),
        ("dot", (1, 3, 80), 15, None),
        ("dot", (2, 5, 64), 7 if IS_INTERPRETED else 15, HALVED),
        ("wide", (2, 1, 64), 70, None),
        ("wide", (1, 3, 80), 23, None),
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_the_others(device, path, heads, num_rows, tile):
    num_slots = 129
    *cache, slot_positions = make_cache(heads, num_slots, device, torch.bfloat16)
    queries = make_queries(heads, num_rows, device, torch.bfloat16)
    positions = row_positions(num_rows, num_slots, device)
    options = {"path": path, "tile": tile}
    together = run(queries, *cache, num_slots, positions, slot_positions, **options)
    ranges = [(0, 1), (3, min(num_rows - 1, 11)), (num_rows - 2, num_rows)]
    for first, last in ranges if IS_INTERPRETED else [*ranges, (4, num_rows), (3, 4)]:
        alone = run(
            queries[first:last], *cache, num_slots, positions[first:last], slot_positions,
            **options,
        )  # fmt: skip
        assert torch.equal(alone, together[first:last])
    last_row = run(queries[-1:], *cache, num_slots, **options)  # it sees all: no positions needed
    assert torch.equal(last_row, together[-1:])


# What one launch does: (heads, rows, path, tile).
ONE_LAUNCH = [
    ((4, 1, 64), 1, "vector", SMALL),
    ((2, 6, 80), 1, "dot", HALVED),
    ((2, 7, 64), 2, "dot", HALVED),
    ((2, 1, 64), 16, "dot", SMALL),
]


@pytest.mark.parametrize(("heads", "num_rows", "path", "tile"), ONE_LAUNCH, ids=str)
def test_one_launch_equals_float64_and_itself(device, heads, num_rows, path, tile):
    keys, values, slot_positions = make_cache(heads, 129, device, torch.bfloat16)
    queries = make_queries(heads, num_rows, device, torch.bfloat16)
    positions = row_positions(num_rows, 129, device)
    num_heads = queries.shape[1]
    assert cut_for(path, tile, keys, num_heads).is_combined
    workspace = workspace_for(keys, num_rows, num_heads, path=path, tile=tile)
    options = {"workspace": workspace, "path": path, "tile": tile}
    # One split and all; of the last slots' split a part, and none.
    for num_slots in (129, 5, 0) if IS_INTERPRETED else (129, 5, 33, 0, 128):
        seen = slot_positions[:num_slots]
        found = attend_slots(queries, keys, values, num_slots, positions, seen, **options)
        assert not workspace.locks.any()
        expected = exact(queries, keys, values, num_slots, positions, seen)
        assert (found.double() - expected).norm() <= ALLOWED[torch.bfloat16] * expected.norm()
        count = torch.full((1,), num_slots, dtype=torch.int32, device=device)
        # The interpreter's programs come in one order: the same call twice tells nothing.
        calls = [(num_slots, seen), (count, slot_positions)]
        for used, at in calls[1:] if IS_INTERPRETED else calls:
            again = attend_slots(queries, keys, values, used, positions, at, **options)
            assert torch.equal(again, found)
    assert not workspace.locks.any()


@pytest.mark.skipif(not IS_INTERPRETED, reason="needs programs that run one after another")
@pytest.mark.parametrize(("heads", "num_rows", "path", "tile"), ONE_LAUNCH[:2], ids=str)
def test_the_bits_do_not_depend_on_who_comes_last(device, heads, num_rows, path, tile):
    keys, values, _ = make_cache(heads, 150, device, torch.bfloat16)
    queries = make_queries(heads, num_rows, device, torch.bfloat16)
    num_heads = queries.shape[1]
    workspace = workspace_for(keys, num_rows, num_heads, path=path, tile=tile)
    options = {"workspace": workspace, "path": path, "tile": tile}
    expected = attend_slots(queries, keys, values, 150, **options)
    # All parts are there from before. As if others had come already, an earlier program is taken
    # for the last one; those that come after it are left in the locks.
    for before in range(1, cut_for(path, tile, keys, num_heads).num_splits, 4):
        workspace.locks.fill_(before)
        found = attend_slots(queries, keys, values, 150, **options)
        assert torch.equal(found, expected)
        assert (workspace.locks == before).all()


def test_splits_without_slots_write_nothing(device):
    keys, values, _ = make_cache((2, 6, 64), 40, device, torch.bfloat16)
    queries = make_queries((2, 6, 64), 1, device, torch.bfloat16)
    workspace = workspace_for(keys, 1, 12, path="dot", tile=HALVED)
    num_splits = cut_for("dot", HALVED, keys, 12).num_splits
    workspace.largest.fill_(torch.nan)
    attend_slots(queries, keys, values, 40, workspace=workspace, path="dot", tile=HALVED)
    of_splits = workspace.largest.view(num_splits, 12)
    num_written = triton.cdiv(40, HALVED.block(64, 2))
    assert num_written < num_splits
    assert of_splits[:num_written].isfinite().all()
    assert of_splits[num_written:].isnan().all()


def test_calls_without_a_workspace_share_locks(device):
    heads = (4, 1, 64)
    cache = make_cache(heads, 100, device, torch.bfloat16)[:2]
    queries = make_queries(heads, 1, device, torch.bfloat16)
    with torch.inference_mode():
        found = [attend_slots(queries, *cache, 100) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(attend_slots(queries, *cache, 100), found[0])

    def locks(num_locks):
        keys = torch.empty(num_locks, 16, 8, dtype=torch.bfloat16, device=device)
        return workspace_of_call(keys, 1, num_locks, False, "vector", SMALL).locks

    shared = locks(1)
    assert shared is locks(len(shared))
    assert not shared.any()
    assert len(locks(len(shared) + 1)) == len(shared) + 1
    assert shared is locks(1)


def test_how_the_work_is_cut():
    processors = 132
    default = {"vector": tiles.VECTOR_TILE, "dot": tiles.DOT_TILE, "wide": tiles.WIDE_TILE}
    cases = [
        # (path, KV heads, group, capacity, cut)
        ("vector", 16, 1, 2176, Cut(33, 1, True)),
        ("vector", 1, 1, 32_768, Cut(528, 1, False)),  # more parts than one program should read
        ("dot", 2, 6, 2176, Cut(34, 3, True)),
        ("dot", 2, 6, 8192, Cut(66, 3, True)),
        ("dot", 2, 6, 32_768, Cut(132, 16, False)),
        ("dot", 4, 7, 2176, Cut(33, 4, True)),
        ("dot", 4, 7, 32_768, Cut(66, 16, False)),
        ("dot", 16, 1, 8192, Cut(16, 16, True)),
        ("dot", 8, 4, 2176, Cut(33, 7, True)),
        ("wide", 2, 6, 2176, Cut(22, 64, False)),
    ]
    for path, num_kv_heads, group, capacity, cut in cases:
        keys = torch.empty(num_kv_heads, capacity, 128, dtype=torch.bfloat16, device="meta")
        found = cut_for(path, default[path], keys, num_kv_heads * group, processors)
        assert found == cut, (path, cut)
    keys = torch.empty(2, 2176, 128, device="meta")
    assert not cut_for("dot", tiles.DOT_TILE, keys, 12, processors).is_combined  # float32


@pytest.mark.parametrize("heads", [(4, 1, 64), (2, 3, 64)], ids=str)
def test_the_number_of_slots_may_be_on_the_device(device, heads):
    count = torch.zeros(1, dtype=torch.int32, device=device)
    for num_slots in (1, 33, 150):
        cache = make_cache(heads, num_slots, device, torch.bfloat16)[:2]
        queries = make_queries(heads, 1, device, torch.bfloat16)
        count.fill_(num_slots)
        weights = torch.full((2, 1, CAPACITY), torch.nan, device=device)
        options = {"with_weights": True}
        found = run(queries, *cache, count, weights=weights[0], **options)
        expected = run(queries, *cache, num_slots, weights=weights[1], **options)
        assert torch.equal(found, expected)
        assert torch.equal(weights[0, :, :num_slots], weights[1, :, :num_slots])
        assert weights[0, :, num_slots:].isnan().all()


@pytest.mark.parametrize("heads", [(4, 1, 64), (2, 3, 64)], ids=str)
def test_rows_that_see_nothing_are_zero(device, heads):
    *cache, slot_positions = make_cache(heads, 40, device, torch.bfloat16)
    queries = make_queries(heads, 1, device, torch.bfloat16)
    weights = torch.full((1, 40), torch.nan, device=device)
    before_all = torch.full((1,), -7, device=device)
    options = {"weights": weights, "with_weights": True}
    assert not run(queries, *cache, 40, before_all, slot_positions, **options).any()
    assert not weights.any()
    assert not run(queries, *cache, 0).any()


def test_weights_add_up_over_layers(device):
    heads, num_slots = (2, 3, 64), 33
    cache = make_cache(heads, num_slots, device, torch.float32)[:2]
    queries = make_queries(heads, 2, device, torch.float32)
    once = torch.full((2, num_slots), torch.nan, device=device)
    run(queries, *cache, num_slots, weights=once, with_weights=True)
    twice = once.clone()
    run(queries, *cache, num_slots, weights=twice, add=True, with_weights=True)
    assert torch.equal(twice, 2 * once)
    assert torch.allclose(once.sum(1), torch.ones(2, device=device))


def test_large_scores_do_not_overflow(device):
    heads, num_slots = (2, 1, 64), 70
    keys, values, _ = make_cache(heads, num_slots, device, torch.float32)
    keys[:, :num_slots] *= 1e3
    queries = make_queries(heads, 1, device, torch.float32)
    for path in ("vector", "dot"):
        found = run(queries, keys, values, num_slots, path=path)
        assert error(found, exact(queries, keys, values, num_slots)) < ALLOWED[torch.float32]


def test_a_workspace_serves_fewer_rows_and_all_paths(device):
    heads, num_slots = (4, 1, 64), 100
    cache = make_cache(heads, num_slots, device, torch.bfloat16)[:2]
    workspace = workspace_for(cache[0], 17, 4)
    for num_rows in (17, 5, 1):
        queries = make_queries(heads, num_rows, device, torch.bfloat16)
        found = attend_slots(queries, *cache, num_slots, workspace=workspace)
        assert error(found, exact(queries, *cache, num_slots)) < ALLOWED[torch.bfloat16]
    with pytest.raises(ValueError, match="workspace"):
        attend_slots(
            make_queries(heads, 18, device, torch.bfloat16), *cache, num_slots,
            workspace=workspace, path="dot",
        )  # fmt: skip


def test_the_path_follows_from_the_rows_of_a_head():
    cases = [(1, 1, 2, "vector"), (1, 7, 2, "dot"), (16, 1, 2, "dot"), (17, 1, 2, "wide")]
    cases += [(3, 7, 2, "wide"), (1, 1, 4, "vector"), (60, 1, 4, "dot")]
    for num_rows, group, itemsize, path in cases:
        assert tiles.default_path(num_rows, group, itemsize) == path


def test_what_does_not_fit_is_refused(device):
    heads, num_slots = (2, 3, 64), 40
    keys, values, positions = make_cache(heads, num_slots, device, torch.bfloat16)
    queries = make_queries(heads, 2, device, torch.bfloat16)
    wrong = [
        ((queries.float(), keys, values, num_slots), {}),
        ((queries[:, :5], keys, values, num_slots), {}),
        ((queries, keys, values[:, 1:], num_slots), {}),
        ((queries, keys, values, CAPACITY + 1), {}),
        ((queries, keys, values, torch.ones(1, device=device)), {}),
        ((queries, keys, values, num_slots, positions[:2]), {}),
        ((queries, keys, values, num_slots, positions[:1], positions), {}),
        ((queries, keys, values, num_slots), {"weights": torch.empty(2, 39, device=device)}),
        ((queries, keys, values, num_slots), {"path": "vector"}),
        ((queries, keys, values, num_slots), {"path": "other"}),
        ((queries.float(), keys.float(), values.float(), num_slots), {"path": "wide"}),
        ((queries, keys, values, num_slots), {"out": queries[:1]}),
    ]
    for arguments, options in wrong:
        with pytest.raises(ValueError):
            attend_slots(*arguments, **options)


@pytest.mark.skipif(IS_INTERPRETED, reason="graphs are CUDA's")
def test_a_captured_graph_survives_a_cache_that_grows(device):
    heads = (4, 1, 64)
    count = torch.full((1,), 20, dtype=torch.int32, device=device)
    keys, values, _ = make_cache(heads, CAPACITY, device, torch.bfloat16)
    queries = make_queries(heads, 1, device, torch.bfloat16)
    weights, out = torch.empty(1, CAPACITY, device=device), torch.empty_like(queries)
    workspace = workspace_for(keys, 1, 4, with_weights=True)
    options = {"weights": weights, "out": out, "workspace": workspace}
    attend_slots(queries, keys, values, count, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend_slots(queries, keys, values, count, **options)
    for num_slots in (1, 64, 65, 150):
        count.fill_(num_slots)
        out.fill_(torch.nan)
        graph.replay()
        expected_weights = torch.empty(1, CAPACITY, device=device)
        expected = exact(queries, keys, values, num_slots, weights=expected_weights)
        assert error(out, expected) < ALLOWED[torch.bfloat16]
        used = slice(num_slots)
        assert error(weights[:, used], expected_weights[:, used].double()) < 1e-5


def test_the_default_tiles_fit_any_head(device):
    keys = torch.empty(2, 64, 8, device=device)
    for path in tiles.PATHS:
        tile = tiles.default_tile(path, keys)
        assert tile.block(8, 4) >= 16
        assert cut_for(path, tile, keys, 2).num_splits >= 1
