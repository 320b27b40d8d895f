"""The decoder against transformers' own logits, over every rotary variant, and over any rows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from keyturn.engine.files.catalog import resolve
from keyturn.engine.files.weights import load_model
from keyturn.engine.model import passes
from keyturn.engine.model.captured_pass import DECODE_ROWS, PATCH_ROWS
from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.decoder import AttentionRecord, Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.kernels import dispatch
from keyturn.kernels.cpu.step_weights import StepLayer, StepWeights
from keyturn.kernels.weights.blocks import BlockMatrix

from ..tolerance import RELATIVE, assert_close

LENGTH = 48
TRAINED = 32

SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + index / 3 for index in range(8)],
    },
}


def check():
    pass


def reference(scaling=None, *, tied=False, bias=False, dtype=torch.float32, heads=(4, 2)):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    parameters = {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})}
    # Transformers keeps short contexts out of `dynamic` by the configured maximum.
    longest = TRAINED if scaling and scaling["rope_type"] == "dynamic" else 64
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16 * heads[0],
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=longest,
        rope_parameters=parameters,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.15,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def ours(model, scaling=None):
    config = model.config
    shape = ModelConfig(
        family="llama",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=10000.0,
        rotary_dim=config.head_dim,
        rope_interleaved=False,
        rope_scaling=scaling,
        tied_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )
    tensors = {name: part.detach().clone() for name, part in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return Decoder(shape, tensors)


def prefilled(decoder, token_ids, capacity=LENGTH):
    cache = KVCache(decoder.config, capacity, decoder.dtype, decoder.device)
    slots = cache.append(np.array(token_ids), np.arange(len(token_ids)))
    hidden = decoder.forward(cache, slots, check)
    cache.mark_computed(slots)
    return cache, decoder.logits(hidden)


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(3).integers(0, 97, LENGTH)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_logits_equal_transformers_for_every_rotary_scaling(scaling, token_ids):
    model = reference(scaling)
    _, logits = prefilled(ours(model, scaling), token_ids)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None]).logits[0]
    assert_close(logits, expected, torch.float32)


def test_static_ntk_equals_transformers_with_the_scaled_base(token_ids):
    model = reference({"rope_type": "default", "rope_theta": 10000.0 * 4 ** (16 / 14)})
    _, logits = prefilled(ours(model, {"rope_type": "ntk", "factor": 4.0}), token_ids)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None]).logits[0]
    assert_close(logits, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (6, 3)], ids=str)
@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True)])
def test_logits_equal_transformers_for_heads_biases_and_dtypes(dtype, heads, tied, bias, token_ids):
    model = reference(tied=tied, bias=bias, dtype=dtype, heads=heads)
    _, logits = prefilled(ours(model), token_ids)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None]).logits[0]
    assert_close(logits, expected, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedded_models_logits_equal_transformers(dtype):
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    files = load_model(resolve("embedded"), dtype)
    shape = files.config
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
    )
    with no_init_weights():  # all come from the file; random ones would take seconds
        model = LlamaForCausalLM(config)
    tensors = {
        name: part.values(dtype) if isinstance(part, BlockMatrix) else part
        for name, part in files.tensors.items()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    token_ids = files.tokenizer.encode(Path(__file__).read_text(encoding="utf-8")[:400]).token_ids
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(token_ids)[None]).logits[0]
    _, logits = prefilled(Decoder(shape, files.tensors), token_ids, len(token_ids))
    assert_close(logits, expected, dtype)
    # Where transformers' own two largest logits lie within the tolerance, either token is right.
    first, second = expected.float().topk(2).values.unbind(-1)
    is_clear = first - second > RELATIVE[dtype] * first.abs()
    assert is_clear.float().mean() > 0.5
    assert torch.equal(logits.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 47])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_set_of_rows_recomputed_in_one_forward_gives_the_same_cache(rows, dtype, token_ids):
    decoder = ours(reference(dtype=dtype))
    cache, logits = prefilled(decoder, token_ids)
    before = [part.clone() for layer in range(3) for part in cache.layer(layer)]
    chosen = np.sort(np.random.default_rng(rows).permutation(LENGTH)[:rows])
    again = decoder.logits(decoder.forward(cache, chosen, check))
    # Few rows keep bf16's rounding in all but the largest logits; those decide.
    best = logits[chosen].argmax(-1, keepdim=True)
    assert_close(again.gather(1, best), logits[chosen].gather(1, best), dtype)
    for was, now in zip(
        before, (part for layer in range(3) for part in cache.layer(layer)), strict=True
    ):
        assert_close(now, was, dtype)


def test_rows_in_arbitrary_order_give_the_logits_of_their_positions(token_ids):
    decoder = ours(reference())
    _, logits = prefilled(decoder, token_ids)
    cache = KVCache(decoder.config, LENGTH, decoder.dtype, decoder.device)
    positions = np.random.default_rng(5).permutation(LENGTH)
    slots = cache.append(token_ids[positions], positions)
    shuffled = decoder.logits(decoder.forward(cache, slots, check))
    assert_close(shuffled, logits[positions], torch.float32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("slots", [[5, 20, 40], [40, 7, 5], range(48), [*range(20, 48)]], ids=len)
def test_attention_weights_are_handed_out_per_slot(monkeypatch, backend, slots, token_ids):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    model = reference()
    decoder = ours(model)
    cache, _ = prefilled(decoder, token_ids)
    slots = np.array(slots)
    record = AttentionRecord(frozenset({0, 2}), [0, 2])
    decoder.forward(cache, slots, check, record)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None], output_attentions=True).attentions
    assert set(record.weights) == {0, 2}
    for layer, weights in record.weights.items():
        assert_close(weights, expected[layer][0].mean(0)[slots[[0, 2]]], torch.float32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17, 48])
def test_layers_in_two_parts_give_what_all_at_once_give(
    monkeypatch, backend, dtype, rows, token_ids
):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    decoder = ours(reference(dtype=dtype))
    found = []
    for parts in ([None], [range(1), range(1, 3)], [range(2), range(2, 2), range(2, 3)]):
        cache, _ = prefilled(decoder, token_ids)
        slots, hidden = np.arange(LENGTH - rows, LENGTH), None
        cache.token_ids[slots] = (token_ids[slots] + 1) % 97  # other keys than the prefill's
        record = AttentionRecord(frozenset({0, 2}), [0])
        for part in parts:
            hidden = decoder.forward(cache, slots, check, record, layers=part, hidden=hidden)
        assert hidden.dtype == torch.float32
        state = [part for layer in range(3) for part in cache.layer(layer)]
        found.append([hidden, record.weights[0], record.weights[2], *state])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_passes_agree_on_what_is_skipped_and_fill_in_keys_and_values(monkeypatch, rows, token_ids):
    slots, skipped = np.arange(LENGTH - rows, LENGTH), bytes([1, 2, 3])
    found = []
    for backend in ("auto", "reference"):
        monkeypatch.setenv(dispatch.VARIABLE, backend)
        decoder = ours(reference(bias=True))
        cache, _ = prefilled(decoder, token_ids)
        hidden = decoder.forward(cache, slots, check, skipped=skipped)
        last = decoder.forward(cache, slots, check, layers=range(2), skipped=skipped)
        assert torch.equal(last, hidden)  # the last layer is left out as a whole
        found.append([hidden, *(part for layer in range(3) for part in cache.layer(layer))])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, torch.float32)
    layer = decoder.stack.layers[2]
    qkv = layer.qkv(layer.attention_norm(hidden))
    values = qkv[:, -2 * 16 :].view(rows, 2, 16).transpose(0, 1)
    assert_close(cache.layer(2)[1][:, torch.from_numpy(slots)], values, torch.float32)


def test_early_layers_leave_the_cache_of_the_others_alone(token_ids):
    decoder = ours(reference())
    cache, _ = prefilled(decoder, token_ids)
    before = cache.layer(2)[0].clone()
    cache.token_ids[:4] = 1
    decoder.forward(cache, np.arange(4), check, layers=range(2))
    assert torch.equal(cache.layer(2)[0], before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm": "none"}, "the norm 'none'"),
        ({"norm_bias": True}, "biases of norms"),
        ({"activation": "relu2"}, "'relu2'"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_layer_that_no_pass_computes_is_refused(monkeypatch, backend, changes, reason):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    decoder = ours(reference())
    config = dataclasses.replace(decoder.config, **changes)
    with pytest.raises(ModelLoadError, match=reason):
        Decoder(config, {})


def test_weights_that_the_c_library_does_not_read_are_served_by_torch(token_ids):
    model = reference()
    _, expected = prefilled(ours(model), token_ids)
    one = (torch.ones(6, 2).double(), None)
    layers = [StepLayer(torch.ones(2), [one], one, torch.ones(2), [one], one)]
    shape = {"num_heads": 1, "num_kv_heads": 1}
    assert "float64" in StepWeights.obstacle(layers, torch.ones(3, 2), **shape)
    _, found = prefilled(ours(model.double()), token_ids)
    assert_close(found, expected, torch.float32)


def test_interrupted_forward_stops_between_layers(token_ids):
    decoder = ours(reference())
    cache = KVCache(decoder.config, LENGTH, decoder.dtype, decoder.device)
    slots = cache.append(token_ids, np.arange(LENGTH))
    calls = []

    def stop_at_second_layer():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.forward(cache, slots, stop_at_second_layer)
    assert len(calls) == 2
    assert cache.num_fresh == 0


def test_warming_up_runs_every_kind_of_pass_a_piece_at_a_time(tiny_model):
    files = load_model(tiny_model, torch.float32)
    decoder = Decoder(files.config, dict(files.tensors))
    pieces = decoder.warm_up(100)
    assert decoder.cost.ms(4) is None
    assert len(list(pieces)) == 1 + len(DECODE_ROWS) + len(PATCH_ROWS)
    cache = KVCache(files.config, 8, decoder.dtype, decoder.device)
    slots = cache.append(np.arange(6), np.arange(6))
    expected = decoder.forward(cache, slots, check)
    assert torch.equal(decoder.forward(cache, slots, check), expected)


@pytest.mark.parametrize("is_recorded", [False, True])
def test_the_c_library_computes_many_rows_of_a_large_model(monkeypatch, is_recorded):
    if isinstance(dispatch.choose(torch.device("cpu")).whole_step, type(None)):
        pytest.skip("no C library")
    files = load_model(resolve("embedded"), torch.float32)
    kept, found = {}, {}
    for most in (passes.MOST_DENSE_BYTES, 0):
        monkeypatch.setattr(passes, "MOST_DENSE_BYTES", most)
        decoder = Decoder(files.config, dict(files.tensors))
        cache = KVCache(files.config, 64, decoder.dtype, decoder.device)
        for part in cache.storage:
            part.fill_(float("nan"))  # as memory that was somebody's may be
        slots = cache.append(np.arange(40) * 7, np.arange(40))
        record = AttentionRecord(frozenset({2}), [5, 39]) if is_recorded else None
        shuffled = np.random.default_rng(2).permutation(slots)
        hidden = decoder.forward(cache, shuffled, check, record)
        found[most] = decoder.logits(hidden)
        kept[most] = record.weights[2] if record else torch.zeros(1)
    (expected, given), (attention, recorded) = found.values(), kept.values()
    assert_close(given, expected, torch.bfloat16)
    assert torch.allclose(recorded, attention, atol=1e-3) and recorded.shape == attention.shape


def test_many_rows_are_left_between_sixteen_and_sixteen(monkeypatch):
    if isinstance(dispatch.choose(torch.device("cpu")).whole_step, type(None)):
        pytest.skip("no C library")
    monkeypatch.setattr(passes, "MOST_DENSE_BYTES", 0)
    files = load_model(resolve("embedded"), torch.float32)
    decoder = Decoder(files.config, dict(files.tensors))
    cache = KVCache(files.config, 64, decoder.dtype, decoder.device)
    num_checks = []
    decoder.forward(cache, cache.append(np.arange(40), np.arange(40)), lambda: num_checks.append(1))
    assert len(num_checks) == 3
