"""The C step against the same model in float64."""

import itertools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch

from keyturn.engine.files import gguf_config
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.stored import in_gguf
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.kernels.cpu import c_types, library
from keyturn.kernels.cpu.step import CpuStep
from keyturn.kernels.cpu.step_weights import StepLayer, StepWeights
from keyturn.kernels.rotary import reference
from keyturn.kernels.weights.blocks import BlockMatrix
from keyturn.kernels.weights.low_rank import FusedUpdate

from ..tolerance import ONE_ROUNDING, RELATIVE, assert_close
from .step_model import Model, Shape, norm, run, values_of

EMBEDDED = next((Path(__file__).parents[2] / "engine" / "embedded").glob("*.gguf"))
KINDS = ("Q4_0", "Q4_1", "Q8_0", torch.float32, torch.bfloat16, torch.float16)
ISAS = [isa for isa in library.ISAS if not isinstance(library.load(isa), str)]

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason=f"the C library is {library.load()}"
)


SHAPES = [
    *(Shape(kind=kind) for kind in KINDS),
    Shape(hidden=32, heads=6, kv_heads=2, dim=64, rotary=64, dtype=torch.bfloat16),
    Shape(bias=True, interleaved=True, dtype=torch.bfloat16),
    Shape(rotary=8, dtype=torch.float16),
    Shape(rotary=16, interleaved=True),
    Shape(heads=4, kv_heads=4, dim=80, rotary=80, hidden=64),
    Shape(hidden=40, heads=4, kv_heads=2, dim=10, rotary=10, inner=52, kind=torch.float32),
    Shape(hidden=40, heads=5, dim=8, rotary=8, inner=17, kind=torch.bfloat16),
    Shape(hidden=40, heads=5, dim=8, rotary=8, inner=17, kind=torch.float32, head_norms=True),
    Shape(heads=4, kv_heads=2, dim=80, rotary=40, head_norms=True, dtype=torch.bfloat16),
    Shape(heads=6, kv_heads=2, window=7),
    Shape(hidden=40, heads=5, dim=8, rotary=8, inner=17, kind=torch.float32, layer_norm=True),
    Shape(layer_norm=True, gelu=True, gated=False, bias=True),
    Shape(gelu=True, dtype=torch.bfloat16),
    Shape(hidden=40, heads=5, dim=8, rotary=4, inner=17, kind=torch.bfloat16, gated=False),
    Shape(window=130, head_norms=True, kind=torch.bfloat16, dtype=torch.bfloat16),
]


SHAPES_WITH_UPDATES = [
    Shape(bias=True),
    Shape(hidden=40, heads=5, dim=8, rotary=8, inner=17, kind=torch.float32, head_norms=True),
    Shape(layer_norm=True, gelu=True, gated=False, inner=96),
    Shape(hidden=64, heads=4, kv_heads=2, dim=80, rotary=40, kind="Q8_0", inner=320),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_match_float64_when_shapes_are_ragged(shape, isa):
    model = Model(shape, isa)
    for rows, slots in ((1, 1), (3, 17), (1, 129), (16, 130)):
        inputs = model.inputs(rows, slots)
        weights = {1: torch.full((rows, slots), float("nan"))}
        hidden, caches = run(model.step, inputs, weights=weights)
        expected, expected_caches, recorded = model.expect(inputs)
        # A key rounded one unit differently is seen in the layers after it.
        allowed = max(RELATIVE[torch.float32], ONE_ROUNDING[shape.dtype])
        assert (hidden - expected).norm() <= allowed * expected.norm()
        for cache, wanted in zip(caches, expected_caches, strict=True):
            assert (cache.double() - wanted).norm() <= allowed * wanted.double().norm()
            untouched = torch.ones(cache.shape[2], dtype=torch.bool)
            untouched[inputs["slots"]] = False
            assert torch.equal(cache[:, :, untouched], wanted[:, :, untouched])
        assert (weights[1] - recorded[1]).abs().max() <= allowed


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("skipped", [*itertools.product(range(4), repeat=2)], ids=str)
def test_skipped_sublayers_leave_rows_alone_but_for_keys_and_values(skipped, isa):
    model = Model(Shape(heads=6, kv_heads=2, bias=True), isa)
    inputs = model.inputs(3, 150)
    hidden, caches = run(model.step, inputs, skipped=bytes(skipped))
    expected, expected_caches, _ = model.expect(inputs, skipped)
    assert_close(hidden, expected, torch.float32)
    for cache, wanted in zip(caches, expected_caches, strict=True):
        assert_close(cache, wanted, torch.float32)
    # The last layer by itself finds its own share.
    part = inputs | {"hidden": hidden}
    again, _ = run(model.step, part, skipped=bytes(skipped), layers=range(1, 2))
    assert torch.equal(again, hidden) == (skipped[1] == 3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [0, 40])
def test_of_the_last_slots_a_row_does_not_see_those_that_are_marked(window, isa):
    model = Model(Shape(heads=6, kv_heads=2, window=window), isa)
    for rows, slots, marked in ((1, 5, 5), (3, 150, 7), (16, 150, 150), (4, 130, 0)):
        inputs = model.inputs(rows, slots)
        unseen = torch.rand(rows, marked, generator=model.random) < 0.5
        own = inputs["slots"] - (slots - marked)
        at = own >= 0
        unseen[at, own[at]] = False
        hidden, _ = run(model.step, inputs, unseen=unseen)
        assert_close(hidden, model.expect(inputs, unseen=unseen)[0], torch.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_match_float64_when_rows_vary(kind, isa):
    model = Model(Shape(kind=kind), isa)
    for rows in (1, 3, 16):
        hidden = model.normal(rows, model.shape.hidden)
        expected = norm(hidden.double(), model.norm) @ values_of(model.head).T
        assert_close(model.step.logits(hidden), expected, torch.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_row_is_the_same_to_the_bit_when_batchmates_and_threads_change(isa):
    model = Model(Shape(heads=6, kv_heads=2, dtype=torch.bfloat16), isa)
    inputs = model.inputs(16, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        hidden, caches = run(model.step, inputs)
        logits = model.step.logits(hidden)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            again, caches_again = run(model.build(isa), inputs)
            assert torch.equal(hidden, again)
            assert all(map(torch.equal, caches, caches_again))
        # The other rows' keys stand in the cache already: only who is computed beside changes.
        names = ("hidden", "slots", "row_positions", "cos", "sin")
        done = inputs | dict(zip(("unrotated", "rotated", "values"), caches, strict=True))
        for size in range(1, 6):
            for start in range(0, 16 - size, size + 3):
                few = done | {name: inputs[name][start : start + size] for name in names}
                assert torch.equal(run(model.step, few)[0], hidden[start : start + size])
                few_logits = model.step.logits(hidden[start : start + size])
                assert torch.equal(few_logits, logits[start : start + size])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES_WITH_UPDATES, ids=str)
def test_updates_add_what_merged_weights_give(shape, dtype, isa):
    model = Model(shape, isa)
    plain = {}
    for ranks in ((1, 16, 0, 7, 64), (33,), (0, 0, 2, 0)):
        updates = model.updates(dtype, ranks)
        model.step.adapt(updates)
        merged = model.merged(updates)
        for rows, slots in ((1, 1), (3, 17), (16, 130)):
            inputs = model.inputs(rows, slots)
            hidden, caches = run(model.step, inputs)
            expected, expected_caches, _ = merged.expect(inputs)
            assert_close(hidden, expected, torch.float32)
            for cache, wanted in zip(caches, expected_caches, strict=True):
                assert_close(cache, wanted, torch.float32)
            plain[rows] = inputs, hidden
    model.step.adapt([])
    for inputs, adapted in plain.values():
        hidden, _ = run(model.step, inputs)
        assert_close(hidden, model.expect(inputs)[0], torch.float32)
        assert not torch.allclose(hidden, adapted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fields", [("qkv",), ("output",), ("gate_up",), ("down",)], ids=str)
@pytest.mark.parametrize("skipped", [(1, 0), (2, 3), (3, 1)], ids=str)
def test_updates_of_a_few_matrices_are_added_when_sublayers_are_skipped(fields, skipped):
    model = Model(Shape(heads=6, kv_heads=2, bias=True, layers=3))
    updates = model.updates(torch.float32, (5, 0, 16), fields)
    model.step.adapt(updates)
    inputs, skipped = model.inputs(3, 150), bytes([*skipped, 0])
    hidden, caches = run(model.step, inputs, skipped=skipped)
    expected, expected_caches, _ = model.merged(updates).expect(inputs, skipped)
    assert_close(hidden, expected, torch.float32)
    for cache, wanted in zip(caches, expected_caches, strict=True):
        assert_close(cache, wanted, torch.float32)
    # Some of the layers by themselves have their own updates.
    first, _ = run(model.step, inputs, skipped=skipped, layers=range(2))
    rest, _ = run(model.step, inputs | {"hidden": first}, skipped=skipped, layers=range(2, 3))
    assert torch.equal(rest, hidden)


@pytest.mark.parametrize("isa", ISAS)
def test_updated_row_is_the_same_to_the_bit_when_batchmates_and_threads_change(isa):
    model = Model(Shape(heads=6, kv_heads=2), isa)
    updates = model.updates(torch.bfloat16, (16, 9))
    inputs = model.inputs(16, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        model.step.adapt(updates)
        hidden, caches = run(model.step, inputs)
        done = inputs | dict(zip(("unrotated", "rotated", "values"), caches, strict=True))
        for threads in (2, 3):
            torch.set_num_threads(threads)
            again = model.build(isa)
            again.adapt(updates)
            assert torch.equal(run(again, inputs)[0], hidden)
        names = ("hidden", "slots", "row_positions", "cos", "sin")
        for size in range(1, 6):
            few = done | {name: inputs[name][size : 2 * size] for name in names}
            assert torch.equal(run(model.step, few)[0], hidden[size : 2 * size])
    finally:
        torch.set_num_threads(before)


def test_updates_that_do_not_fit_leave_those_before():
    model = Model(Shape())
    updates = model.updates(torch.float32, (4,))
    model.step.adapt(updates)
    inputs = model.inputs(2, 9)
    expected, _ = run(model.step, inputs)
    wide = FusedUpdate(torch.ones(4, 97), updates[0]["output"].ups)
    double = FusedUpdate(updates[0]["down"].down.double(), updates[0]["down"].ups)
    for field, wrong in (("output", wide), ("down", double), ("qkv", updates[0]["output"])):
        with pytest.raises(ValueError, match="factor"):
            model.step.adapt([updates[0], updates[1] | {field: wrong}])
        assert torch.equal(run(model.step, inputs)[0], expected)


def test_turned_key_equals_written_key_when_the_position_is_the_same():
    model = Model(Shape(dtype=torch.bfloat16))
    inputs = model.inputs(3, 17)
    _, (unrotated, rotated, _) = run(model.step, inputs)
    turned = rotated.clone()
    slots, cos, sin = (inputs[name] for name in ("slots", "cos", "sin"))
    reference.rope_shift(unrotated, turned, slots, torch.arange(len(slots)), cos, sin, False)
    assert torch.equal(turned, rotated)


def test_fused_and_separate_matrices_agree_when_the_rows_are_the_same():
    model = Model(Shape(bias=True))
    inputs = model.inputs(2, 9)
    layers = []
    for layer in model.layers:
        blocks = torch.cat([matrix.blocks for matrix, _ in layer.qkv])
        fused = (BlockMatrix(blocks, "Q4_1"), torch.cat([bias for _, bias in layer.qkv]))
        matrix, bias = layer.gate_up[0]
        halves = [
            (BlockMatrix(half, "Q4_1"), part)
            for half, part in zip(matrix.blocks.chunk(2), bias.chunk(2), strict=True)
        ]
        layers.append(
            StepLayer(
                layer.attention_norm, [fused], layer.output, layer.mlp_norm, halves, layer.down
            )
        )
    expected = run(model.step, inputs)[0]
    model.layers = layers
    assert torch.equal(run(model.build("auto"), inputs)[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(1, 95)}, "hidden is"),
        ({"slots": torch.tensor([17])}, "below 17"),
        ({"slots": torch.tensor([-1])}, "below 17"),
        ({"num_rows": 99, "slot_positions": torch.zeros(99, dtype=torch.int64)}, "99 rows"),
        ({"values": torch.zeros(2, 1, 20, 31)}, "values is"),
        ({"cos": torch.zeros(1, 20), "sin": torch.zeros(1, 20)}, "20 angles"),
    ],
)
def test_forward_names_the_argument_when_it_does_not_fit(change, message):
    model = Model(Shape())
    with pytest.raises(ValueError, match=message):
        model.step.forward(**(model.inputs(1, 17) | change))


def test_build_refuses_a_matrix_when_it_cannot_be_read():
    model = Model(Shape(kind=torch.float32))
    model.head = model.head.double()
    with pytest.raises(ValueError, match=r"torch\.float64"):
        model.build("auto")
    model.head = torch.zeros(5, 31)
    with pytest.raises(ValueError, match="31"):
        model.build("auto")


def test_a_library_of_another_version_is_not_used(monkeypatch):
    places = [Path(library.__file__).with_name(f"_cpu_step{end}") for end in EXTENSION_SUFFIXES]
    built = next(place for place in places if place.is_file())
    assert not isinstance(library.load_file(built), str)
    monkeypatch.setattr(c_types, "LAYOUT", c_types.LAYOUT + 8)
    assert "another version of keyturn; reinstall" in str(library.load_file(built))


def test_load_gives_a_reason_when_the_library_is_unusable(tmp_path):
    broken = tmp_path / "_cpu_step.so"
    assert "cannot be loaded" in str(library.load_file(broken))
    broken.write_bytes(b"no library")
    assert "cannot be loaded" in str(library.load_file(broken))
    assert "not one of" in str(library.load("sse9"))


def test_embedded_model_gives_the_same_logits_and_tokens_when_decoding():
    files = load_model(EMBEDDED, torch.float32)
    config, decoder = files.config, Decoder(files.config, files.tensors)
    step, head = _embedded_step()
    prompt = files.tokenizer.encode("def add(a, b):\n    return").token_ids
    caches = [KVCache(config, 64, torch.float32, torch.device("cpu")) for _ in range(2)]
    every = [cache.append(prompt, np.arange(len(prompt))) for cache in caches][0]
    hidden = [decoder.forward(cache, every, lambda: None) for cache in caches][0]
    token = int(decoder.logits(hidden[-1:]).argmax())
    for _ in range(6):
        at = caches[0].num_rows
        one, place = np.array([token]), np.array([at])
        slots = [cache.append(one, place) for cache in caches][0]
        expected = decoder.logits(decoder.forward(caches[0], slots, lambda: None))
        index = torch.from_numpy(slots)
        positions = torch.from_numpy(caches[1].positions.copy())
        cos, sin = caches[1].table.at(positions[index])
        hidden = step.forward(
            head.at(torch.tensor([token])).values(torch.float32),
            *caches[1].storage,
            index,
            caches[1].num_rows,
            positions[index],
            positions,
            cos,
            sin,
        )
        logits = step.logits(hidden)
        assert_close(logits, expected, torch.float32)
        token = int(expected.argmax())
        assert int(logits.argmax()) == token


def _embedded_step():
    file = GGUFFile(EMBEDDED)
    config = gguf_config.read_config(file)

    def blocks(name):
        place = in_gguf(config, name)
        found = file.blocks(place.name, place.order)
        assert found is not None, name
        return found

    def norm_weight(name):
        return file.tensor(in_gguf(config, name).name, torch.float32)

    layers = []
    for index in range(config.num_layers):
        at = f"model.layers.{index}."
        linear = {
            name: (blocks(f"{at}{name}_proj.weight"), None)
            for name in itertools.chain(
                (f"self_attn.{letter}" for letter in "qkvo"), ("mlp.gate", "mlp.up", "mlp.down")
            )
        }
        layers.append(
            StepLayer(
                norm_weight(at + "input_layernorm.weight"),
                [linear[f"self_attn.{letter}"] for letter in "qkv"],
                linear["self_attn.o"],
                norm_weight(at + "post_attention_layernorm.weight"),
                [linear["mlp.gate"], linear["mlp.up"]],
                linear["mlp.down"],
            )
        )
    head = blocks("model.embed_tokens.weight")
    loaded = library.load()
    assert not isinstance(loaded, str)
    weights = StepWeights(
        layers,
        norm_weight("model.norm.weight"),
        head,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        eps=config.norm_eps,
        interleaved=config.rope_interleaved,
    )
    return CpuStep(loaded, weights), head


@pytest.mark.parametrize("isa", ISAS)
def test_chunks_that_a_window_has_left_add_nothing(isa):
    model = Model(Shape(window=9), isa)
    inputs = model.inputs(2, 400)
    inputs["slot_positions"] = torch.arange(400)  # all of the first chunks lie before the window
    inputs["slots"] = torch.tensor([399, 3])
    inputs["row_positions"] = inputs["slots"].clone()
    hidden, _ = run(model.step, inputs)
    expected, _, _ = model.expect(inputs)
    assert_close(hidden, expected, torch.float32)
