"""A decode step over a cache that is patched in between gives what the forward pass gives."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from keyturn.engine.generation.writing import Sampler
from keyturn.engine.model.captured_pass import (
    CapturedPass,
    DecodeGraph,
    PatchGraph,
    sees_every_slot,
)
from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.decoder import AttentionRecord, Decoder
from keyturn.engine.model.heads import Logits, summarized
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.passes import GraphPass, Rows
from keyturn.engine.model.tensors import expected_shapes
from keyturn.kernels import dispatch
from keyturn.kernels.attention.reference import attend_slots
from keyturn.kernels.layer import launch as step
from keyturn.kernels.layer import reference as reference_step
from keyturn.kernels.matmul import dense as dense_gemv
from keyturn.kernels.matmul import quant
from keyturn.kernels.matmul.gpu_linear import QuantLinear
from keyturn.kernels.matmul.table import GemvTile, Plan
from keyturn.kernels.weights.low_rank import LowRank
from keyturn.kernels.weights.packed import quantize_groups

from ..tolerance import assert_close

IS_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
CAPACITY = 24


# A forward pass that is asked for a record, an empty one here, is never captured.
UNCAPTURED = AttentionRecord(frozenset(), [])


@pytest.fixture(autouse=True)
def plain_projections(monkeypatch):
    if IS_INTERPRETED:  # the CPU's own hold their weights packed
        monkeypatch.setenv(dispatch.VARIABLE, "reference")


def check():
    pass


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter likes few large programs."""
    if IS_INTERPRETED:
        plan = Plan(GemvTile(64, 32, 1, 1), None, None, 4, 0, 5)
        for module in (step, dense_gemv, quant):
            monkeypatch.setattr(module, "plan_for", lambda *_: plan)


def kernels(name):
    if name == "reference":
        if not IS_INTERPRETED:
            pytest.skip("reads a number on the host, which a graph cannot")
        return SimpleNamespace(fused_linear=reference_step.fused_linear, attend_slots=attend_slots)
    if IS_INTERPRETED:
        return SimpleNamespace(fused_linear=step.fused_linear, attend_slots=attend_slots)
    slot_attention = pytest.importorskip("keyturn.kernels.attention.slots")
    return SimpleNamespace(fused_linear=step.fused_linear, attend_slots=slot_attention.attend_slots)


def decoder_of(dtype, *, bias=True, tied=False, interleaved=False, packed=False):
    config = ModelConfig(
        family="llama",
        num_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=50,
        max_positions=64,
        norm_eps=1e-6,
        rope_theta=10000.0,
        rotary_dim=16,
        rope_interleaved=interleaved,
        rope_scaling=None,
        tied_embeddings=tied,
        attention_bias=bias,
        output_bias=False,
        mlp_bias=bias,
    )
    random = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        values = torch.randn(*shape, generator=random) * (1 if "embed" in name else 0.2)
        values = values + 1 if "norm" in name else values
        tensors[name] = values.to(DEVICE, dtype)
    decoder = Decoder(config, tensors)
    if packed:
        for layer in decoder.stack.layers:
            for name in ("qkv", "output", "gate_up", "down"):
                holder = layer if hasattr(layer, name) else layer.mlp
                dense = getattr(holder, name)
                weight = quantize_groups(dense.weight, 4, 32, symmetric=True)
                setattr(holder, name, QuantLinear(weight, dense.bias))
    return decoder


def filled(decoder, length):
    cache = KVCache(decoder.config, CAPACITY, decoder.dtype, decoder.device)
    slots = cache.append(np.arange(length) % 50, np.arange(length))
    decoder.forward(cache, slots, check)
    return cache


def both(decoder, graph, cache, slot):
    """Return a row's logits, keys and values by the graph and by the forward pass."""
    answers = []
    for is_graph in (True, False):
        if is_graph:
            logits = graph.step(slot).clone()
        else:
            logits = decoder.logits(decoder.forward(cache, np.array([slot]), check, UNCAPTURED))[0]
        rows = [part[:, slot].clone() for layer in range(2) for part in cache.layer(layer)]
        rows += [cache.unrotated(layer)[:, slot].clone() for layer in range(2)]
        answers.append([logits, *rows])
    return answers


def assert_alike(answers, dtype):
    for found, expected in zip(*answers, strict=True):
        assert_close(found, expected, dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("reference", torch.float32), ("reference", torch.bfloat16), ("triton", torch.bfloat16)],
)
def test_steps_equal_the_forward_pass_while_the_cache_is_patched(name, dtype):
    decoder = decoder_of(dtype)
    cache = filled(decoder, 9)
    graph = DecodeGraph(decoder.stack, cache, kernels(name))

    def append(position):
        (slot,) = cache.append(np.array([int(position) % 50]), np.array([position]))
        assert sees_every_slot(cache, np.array([slot]))
        assert_alike(both(decoder, graph, cache, slot), dtype)

    append(9)
    append(10)
    cache.remove(np.array([2, 3]))  # the last rows move there
    append(11)
    order = cache.by_position()
    cache.turn(order, np.arange(len(order)))
    append(len(order))
    # The last row again, which is not the last slot.
    last = int(cache.positions.argmax())
    cache.append(np.array([7]), np.array([cache.num_rows]))
    cache.positions[[last, cache.num_rows - 1]] = cache.positions[[cache.num_rows - 1, last]]
    decoder.forward(cache, np.array([cache.num_rows - 1, last]), check)
    assert_alike(both(decoder, graph, cache, last), dtype)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_packed_weights_tied_heads_and_interleaved_pairs(name):
    decoder = decoder_of(torch.bfloat16, bias=False, tied=True, interleaved=True, packed=True)
    cache = filled(decoder, 5)
    graph = DecodeGraph(decoder.stack, cache, kernels(name))
    (slot,) = cache.append(np.array([3]), np.array([5]))
    assert_alike(both(decoder, graph, cache, slot), torch.bfloat16)


def everything(cache):
    return [part[:, :, : cache.num_rows].clone() for part in cache.storage]


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("reference", torch.float32), ("reference", torch.bfloat16), ("triton", torch.bfloat16)],
)
def test_steps_of_several_rows_equal_the_forward_pass_while_the_cache_is_patched(name, dtype, size):
    decoder = decoder_of(dtype)
    cache = filled(decoder, 14)
    graph = DecodeGraph(decoder.stack, cache, kernels(name), size)
    for count in (size, 1, size - 1):
        cache.remove(np.array([2, 5]))  # the last rows move there
        order = cache.by_position()
        cache.turn(order, np.arange(len(order)))
        before = everything(cache)
        slots = cache.append(np.arange(count) + 20, cache.num_rows + np.arange(count))
        logits, summaries = (part.clone() for part in graph.decode(slots))  # good until a pass
        for kept, part in zip(before, everything(cache), strict=True):
            assert torch.equal(kept, part[:, :, : slots[0]]), "rows that are computed change alone"
        found = [part[:, :, slots] for part in everything(cache)]
        assert logits.shape == (count, 50)
        assert torch.equal(summaries, summarized(logits))
        expected = decoder.logits(decoder.forward(cache, slots, check, UNCAPTURED))
        assert_close(logits, expected, dtype)
        for mine, part in zip(found, everything(cache), strict=True):
            assert_close(mine, part[:, :, slots], dtype)
        cache.remove(slots)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_steps_of_several_rows_without_fusion_equal_the_forward_pass(size, monkeypatch):
    decoder = decoder_of(torch.float32)
    monkeypatch.setattr(DecodeGraph, "can_fuse", staticmethod(lambda _: False))
    cache = filled(decoder, 9)
    graph = DecodeGraph(decoder.stack, cache, kernels("reference"), size)
    slots = cache.append(np.arange(size) + 20, 9 + np.arange(size))
    found = graph.decode(slots).rows
    expected = decoder.logits(decoder.forward(cache, slots, check, UNCAPTURED))
    assert_close(found, expected, torch.float32)


def test_a_summary_is_what_picking_finds_in_the_logits():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 3
    sampler, read = Sampler(0.0, 1.0, 0), Logits(logits, summarized(logits)).read()
    for (row, summary), expected in zip(read, logits, strict=True):
        assert torch.equal(row, expected)
        assert sampler.pick(row, summary) == pytest.approx(sampler.pick(row), rel=1e-6)
        entropy = torch.distributions.Categorical(logits=row.double()).entropy()
        assert summary.entropy == pytest.approx(float(entropy), rel=1e-5)
    assert [summary for _, summary in Logits(logits).read()] == [None] * 3


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_equal_the_forward_pass_while_the_cache_changes(rows, dtype):
    decoder = decoder_of(dtype)
    cache = filled(decoder, 12)
    if cache.layer(0)[0].is_cuda and dtype == torch.float32:
        pytest.skip("the tolerance of float32 is for torch's own products")
    graph = PatchGraph(decoder.stack, cache, dispatch.choose(decoder.device), 4)
    for removed in ([], [2, 3]):
        cache.remove(np.array(removed, dtype=np.int64))
        order = cache.by_position()
        cache.turn(order, np.arange(len(order)))
        slots = np.random.default_rng(rows).permutation(cache.num_rows)[:rows]
        # Each row twice, by the graph and by the pass that it captures.
        found = graph.forward(slots)
        keys = [cache.layer(layer)[0].clone() for layer in range(2)]
        expected = decoder.forward(cache, slots, check, UNCAPTURED)
        assert_close(found, expected, dtype)
        for layer in range(2):
            assert_close(keys[layer], cache.layer(layer)[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_of_some_layers_equal_the_forward_pass(dtype):
    decoder = decoder_of(dtype)
    cache = filled(decoder, 12)
    if cache.layer(0)[0].is_cuda and dtype == torch.float32:
        pytest.skip("the tolerance of float32 is for torch's own products")
    kernels = dispatch.choose(decoder.device)
    first = PatchGraph(decoder.stack, cache, kernels, 4, range(1))
    second = PatchGraph(decoder.stack, cache, kernels, 4, range(1, 2), is_given=True)
    for slots in ([3, 7, 11], [5], [0, 1, 2, 11]):
        slots = np.array(slots)
        half = first.forward(slots).float()
        assert_close(half, decoder.forward(cache, slots, check, UNCAPTURED, layers=range(1)), dtype)
        found = second.forward(slots, half)
        assert_close(found, decoder.forward(cache, slots, check, UNCAPTURED), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_leave_the_record_that_the_forward_pass_leaves(dtype):
    decoder = decoder_of(dtype)
    cache = filled(decoder, 12)
    if cache.layer(0)[0].is_cuda and dtype == torch.float32:
        pytest.skip("the tolerance of float32 is for torch's own products")
    layers = frozenset([1])
    graph = PatchGraph(decoder.stack, cache, dispatch.choose(decoder.device), 4, recorded=layers)
    for slots in ([3, 7, 11], [5], [0, 1, 2, 11]):
        graph.forward(np.array(slots))
        record = AttentionRecord(layers)
        decoder.forward(cache, np.array(slots), check, record)
        found = graph.attention()
        assert found.keys() == record.weights.keys() == layers
        assert_close(found[1][: len(slots)], record.weights[1], dtype)


def test_other_weights_are_captured_anew():
    decoder = decoder_of(torch.bfloat16)
    cache = filled(decoder, 12)
    graphs = GraphPass(decoder.stack)
    last, rows = np.array([11]), Rows(np.array([3, 7, 11]), range(2))
    random = torch.Generator().manual_seed(2)
    update = LowRank(
        torch.randn(5, 32, generator=random) / 4, torch.randn(64, 5, generator=random) / 2
    )
    plain: list[torch.Tensor] = []
    for updates in ({}, {"model.layers.1.mlp.up_proj": update}, {}):
        before = [each for each in cache.graphs.values() if isinstance(each, CapturedPass)]
        decoder.adapt(updates)
        graphs.note_other_weights()
        decoded = graphs.decode(cache, last, check).rows[0].clone()
        found = [decoded, graphs.run(cache, rows, check).clone()]
        hidden = decoder.forward(cache, last, check, UNCAPTURED)
        assert_close(found[0], decoder.logits(hidden)[0], torch.bfloat16)
        assert_close(
            found[1], decoder.forward(cache, rows.slots, check, UNCAPTURED), torch.bfloat16
        )
        assert not any(each is old for each in cache.graphs.values() for old in before)
        plain = plain or found
        apart = (found[0] - plain[0]).norm() / plain[0].norm()
        assert (apart > 0.1) == bool(updates)


def test_only_one_row_at_the_last_position_sees_every_slot():
    cache = filled(decoder_of(torch.float32), 4)
    assert sees_every_slot(cache, np.array([3]))
    assert not sees_every_slot(cache, np.array([2]))
    assert not sees_every_slot(cache, np.array([2, 3]))
