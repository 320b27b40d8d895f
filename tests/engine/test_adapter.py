"""LoRA adapters beside the weights: exact against merged ones, changed without loading anew."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from keyturn.engine.engine import Engine
from keyturn.engine.files.adapter import read_adapter
from keyturn.engine.files.packing import Packing
from keyturn.engine.files.weights import load_model
from keyturn.engine.model import passes
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.passes import EagerPass, Rows
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import ModelLoadError, ModelNotFound
from keyturn.kernels import dispatch
from keyturn.kernels.cpu import library
from keyturn.kernels.weights.blocks import BlockMatrix

from ..tolerance import assert_close

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False}
PARTS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
ALL = tuple(f"{room}.{part}" for room, parts in PARTS.items() for part in parts)
TEXT = "def add(first, second):\n    return first + second\n" * 9
PARAMS = CompletionParams(6, 0.0, 1.0, 0, (), 0.0)


def write_adapter(folder, model, parts=ALL, ranks=(4,), seed=1, strength=0.3, **config):
    """Save an adapter of a model in a folder."""
    weights = load_file(model / "model.safetensors")
    names = [name for name in weights if name.endswith(tuple(f".{part}.weight" for part in parts))]
    shapes = {name: weights[name].shape for name in names}
    save_adapter(folder, shapes, ranks, seed, strength, **config)
    return folder


def save_adapter(folder, shapes, ranks=(4,), seed=1, strength=0.3, **config):
    """Save an adapter as PEFT does; the ranks are those of the layers, in turn.

    Returns the factors by the names of the weights.
    """
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    random, tensors, factors = torch.Generator().manual_seed(seed), {}, {}
    for name, (rows, columns) in shapes.items():
        rank = ranks[int(name.split(".")[2]) % len(ranks)]
        down = torch.randn(rank, columns, generator=random) * strength
        up = torch.randn(rows, rank, generator=random) * strength
        at = f"base_model.model.{name.removesuffix('.weight')}."
        tensors |= {f"{at}lora_A.weight": down, f"{at}lora_B.weight": up}
        factors[name] = down, up
    save_file(tensors, folder / "adapter_model.safetensors")
    return factors


def merged(files, adapter, scale):
    """The oracle: dense weights with each product of factors added, times `scale(name, rank)`."""
    factors = load_file(adapter / "adapter_model.safetensors")
    tensors = {}
    for name, part in files.tensors.items():
        dense = part.values(torch.float32) if isinstance(part, BlockMatrix) else part.clone()
        at = f"base_model.model.{name.removesuffix('.weight')}."
        if f"{at}lora_A.weight" in factors:
            down, up = factors[f"{at}lora_A.weight"], factors[f"{at}lora_B.weight"]
            dense += scale(name, len(down)) * up @ down
        tensors[name] = dense
    return dataclasses.replace(files, tensors=tensors)


def logits(decoder, rows=6):
    cache = KVCache(decoder.config, 32, decoder.dtype, decoder.device)
    slots = cache.append(np.arange(rows) * 7 % 300, np.arange(rows))
    return decoder.logits(decoder.forward(cache, slots, lambda: None))


def decoder_of(files, updates=None):
    decoder = Decoder(files.config, dict(files.tensors))
    if updates is not None:
        decoder.adapt(updates)
    return decoder


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("quant", [None, "q4"])
@pytest.mark.parametrize(
    "parts", [ALL, ("self_attn.q_proj", "self_attn.v_proj"), ("mlp.up_proj",)], ids=len
)
def test_an_adapter_gives_the_logits_of_merged_weights(
    monkeypatch, tiny_model, tmp_path, parts, quant, backend
):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    adapter = write_adapter(tmp_path / "a", tiny_model, parts)
    packing = None if quant is None else Packing(quant, None)
    files = load_model(tiny_model, torch.float32, packing=packing)
    decoder = decoder_of(files, read_adapter(adapter, files.config))
    expected = decoder_of(merged(files, adapter, lambda name, rank: 8 / rank))
    plain = decoder_of(files)
    for rows in (1, 6, 20):
        found = logits(decoder, rows)
        assert torch.allclose(found, logits(expected, rows), rtol=1e-4, atol=2e-3)
        assert not torch.allclose(found, logits(plain, rows), atol=0.1)
    decoder.adapt({})
    assert torch.equal(logits(decoder), logits(plain))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 3}, lambda name, rank: 3 / rank),
        ({"use_rslora": True}, lambda name, rank: 8 / math.sqrt(rank)),
        (
            {"alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}},
            lambda name, rank: (
                (2 if "q_proj" in name else 5 if "1.mlp.up_proj" in name else 8) / rank
            ),
        ),
    ],
)
def test_scales_and_ranks_of_their_own_are_those_of_peft(tiny_model, tmp_path, config, scale):
    adapter = write_adapter(tmp_path / "a", tiny_model, ranks=(4, 7), **config)
    files = load_model(tiny_model, torch.float32)
    found = logits(decoder_of(files, read_adapter(adapter, files.config)))
    expected = logits(decoder_of(merged(files, adapter, scale)))
    assert torch.allclose(found, expected, rtol=1e-4, atol=2e-3)


@pytest.fixture
def no_launches(monkeypatch):
    """Rows that are launched one by one are an error."""
    if isinstance(library.load(), str):
        pytest.skip("needs the C library")

    def run(*_):
        raise AssertionError("launched one by one")

    monkeypatch.setattr(EagerPass, "run", run)


@pytest.mark.parametrize("quant", [None, "q4"])
def test_the_c_step_takes_one_adapter_after_another(no_launches, tiny_model, tmp_path, quant):
    packing = None if quant is None else Packing(quant, None)
    files = load_model(tiny_model, torch.float32, packing=packing)
    decoder = decoder_of(files)
    plain = logits(decoder)
    for parts, ranks in (
        (ALL, (8, 64)),
        (("mlp.gate_proj", "self_attn.k_proj"), (1,)),
        (ALL, (3,)),
    ):
        adapter = write_adapter(tmp_path / "a", tiny_model, parts, ranks, seed=ranks[0])
        decoder.adapt(read_adapter(adapter, files.config))
        expected = decoder_of(merged(files, adapter, lambda name, rank: 8 / rank))
        for rows in (1, 5, 16):
            found = logits(decoder, rows)
            assert torch.allclose(found, logits(expected, rows), rtol=1e-4, atol=2e-3)
    decoder.adapt({})
    assert torch.equal(logits(decoder), plain)


def test_the_c_step_prefills_a_large_model_beside_its_adapter(
    monkeypatch, no_launches, tiny_model, tmp_path
):
    monkeypatch.setattr(passes, "MOST_DENSE_BYTES", 0)
    adapter = write_adapter(tmp_path / "a", tiny_model)
    files = load_model(tiny_model, torch.float32, packing=Packing("q4", None))
    found = logits(decoder_of(files, read_adapter(adapter, files.config)), 32)
    expected = logits(decoder_of(merged(files, adapter, lambda name, rank: 8 / rank)), 16)
    assert torch.allclose(found[:16], expected, rtol=1e-4, atol=2e-3)


def test_another_adapter_takes_the_place_of_the_first(tiny_model, tmp_path):
    first = write_adapter(tmp_path / "a", tiny_model, seed=1)
    second = write_adapter(tmp_path / "b", tiny_model, ("mlp.down_proj",), seed=2)
    files = load_model(tiny_model, torch.float32)
    decoder = decoder_of(files, read_adapter(first, files.config))
    decoder.adapt(read_adapter(second, files.config))
    expected = logits(decoder_of(merged(files, second, lambda name, rank: 8 / rank)))
    assert torch.allclose(logits(decoder), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3' is no LoRA adapter"),
        ({"peft_type": None}, "None is no LoRA adapter"),
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "biases of the factors"),
        ({"modules_to_save": ["lm_head"]}, "trained as a whole"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_other_adapters_are_refused_by_name(tiny_model, tmp_path, config, reason):
    adapter = write_adapter(tmp_path / "a", tiny_model, **config)
    files = load_model(tiny_model, torch.float32)
    with pytest.raises(ModelLoadError, match=reason) as error:
        read_adapter(adapter, files.config)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(1)},
            "em",
        ),
        (
            lambda t: (
                t
                | {
                    "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(
                        1
                    )
                }
            ),
            "lora_magnitude_vector",
        ),
        (lambda t: {n: v for n, v in t.items() if "lora_B" not in n}, "do not fit"),
        (lambda t: {n: v[:, :-1].contiguous() for n, v in t.items()}, "do not fit"),
        (lambda t: {n.replace("layers.1", "layers.9"): v for n, v in t.items()}, "do not fit"),
        (lambda t: {}, "no factors"),
    ],
)
def test_factors_of_another_model_are_one_error(tiny_model, tmp_path, change, reason):
    adapter = write_adapter(tmp_path / "a", tiny_model)
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelLoadError, match=reason) as error:
        read_adapter(adapter, load_model(tiny_model, torch.float32).config)
    assert "\n" not in str(error.value) and "; " in str(error.value)


def test_damaged_missing_and_pickled_adapters_are_one_error(tiny_model, tmp_path):
    config = load_model(tiny_model, torch.float32).config
    adapter = write_adapter(tmp_path / "a", tiny_model)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match="damaged"):
        read_adapter(adapter, config)
    path.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="pickle"):
        read_adapter(adapter, config)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelLoadError, match="no adapter_model.safetensors"):
        read_adapter(adapter, config)


# In an engine


def engine_for(tiny_model, policy, heals="full"):
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 28, 0, 256, heal=heals))
    session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy=policy)
    return engine, session


def healed(session):
    while session.num_to_heal:
        session.heal(64, lambda: None)


def cold(tiny_model, adapter, offset):
    engine, session = engine_for(tiny_model, "full")
    if adapter is not None:
        engine.adapt(str(tiny_model), str(adapter))
    session.complete(offset, PARAMS, lambda: None)
    return session.prompt.logits(lambda: None)


@pytest.mark.parametrize("heals", ["full", "worthwhile"])
@pytest.mark.parametrize("policy", ["turn", "repair", "heal"])
def test_a_change_keeps_the_rows_stale_and_healing_makes_them_exact(
    tiny_model, tmp_path, policy, heals
):
    adapter = write_adapter(tmp_path / "a", tiny_model)
    engine, session = engine_for(tiny_model, policy, heals)
    session.complete(100, PARAMS, lambda: None)
    assert session.num_stale == 0
    for wanted in (adapter, None):
        engine.adapt(str(tiny_model), None if wanted is None else str(wanted))
        assert session.num_stale == session.num_prompt_tokens > 0
        assert len(engine.status()["models"]) == 1
        assert list(engine.status()["adapters"].values()) == [str(wanted)] * (wanted is not None)
        if policy == "heal":
            session.complete(100, PARAMS, lambda: None)
        healed(session)
        assert session.num_stale == 0
        found = session.prompt.logits(lambda: None)
        assert torch.allclose(found, cold(tiny_model, wanted, 100), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("policy", ["prefix", "full"])
def test_a_change_drops_what_a_policy_would_use_as_exact(tiny_model, tmp_path, policy):
    adapter = write_adapter(tmp_path / "a", tiny_model)
    engine, session = engine_for(tiny_model, policy)
    session.complete(100, PARAMS, lambda: None)
    engine.adapt(str(tiny_model), str(adapter))
    completion = session.complete(100, PARAMS, lambda: None)
    assert completion.num_reused_tokens == 0
    found = session.prompt.logits(lambda: None)
    assert torch.allclose(found, cold(tiny_model, adapter, 100), rtol=1e-4, atol=2e-3)


def test_rows_that_return_after_a_change_are_not_taken_for_exact(tiny_model, tmp_path):
    adapter = write_adapter(tmp_path / "a", tiny_model)
    engine, session = engine_for(tiny_model, "repair")
    session.complete(len(TEXT), PARAMS, lambda: None)
    session.edit([(0, 200, "")])
    session.complete(len(TEXT) - 200, PARAMS, lambda: None)
    engine.adapt(str(tiny_model), str(adapter))
    healed(session)
    session.edit([(0, 0, TEXT[:200])])
    session.complete(len(TEXT), PARAMS, lambda: None)
    healed(session)
    found = session.prompt.logits(lambda: None)
    assert torch.allclose(found, cold(tiny_model, adapter, len(TEXT)), rtol=1e-4, atol=2e-3)


def test_an_adapter_that_cannot_be_served_leaves_the_one_before(tiny_model, tmp_path):
    adapter = write_adapter(tmp_path / "a", tiny_model)
    engine, session = engine_for(tiny_model, "repair")
    engine.adapt(str(tiny_model), str(adapter))
    session.complete(100, PARAMS, lambda: None)
    healed(session)
    with pytest.raises(ModelNotFound, match="adapter_config.json; give a folder"):
        engine.adapt(str(tiny_model), str(tmp_path / "none"))
    dora = write_adapter(tmp_path / "dora", tiny_model, use_dora=True)
    with pytest.raises(ModelLoadError, match="DoRA"):
        engine.adapt(str(tiny_model), str(dora))
    engine.adapt(str(tiny_model), str(adapter))  # the same: nothing happens
    assert session.num_stale == 0
    shutil.rmtree(adapter)
    write_adapter(adapter, tiny_model, seed=9)  # trained on
    engine.adapt(str(tiny_model), str(adapter))
    assert session.num_stale > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "quant"),
    [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "q4"), ("bfloat16", "b4")],
)
def test_on_a_gpu_by_every_pass_beside_every_kind_of_weights(tiny_model, tmp_path, dtype, quant):
    """Launches against merged weights; captured graphs against them too, or against launches."""
    engine = Engine(EngineConfig("cuda", dtype, 0, 1 << 28, 0, 256, quant))
    session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy="repair")
    session.complete(100, PARAMS, lambda: None)
    decoder, files = session.model.decoder, load_model(tiny_model, torch.float32)
    seen = []
    for seed in (1, 2, None):
        adapter = None
        if seed is not None:
            adapter = write_adapter(tmp_path / "a", tiny_model, strength=0.05, seed=seed)
        engine.adapt(str(tiny_model), None if adapter is None else str(adapter))
        assert session.num_stale > 0
        healed(session)
        cache = KVCache(decoder.config, 32, decoder.dtype, decoder.device)
        slots = cache.append(np.arange(20) * 7 % 300, np.arange(20))
        rows = Rows(slots, range(decoder.config.num_layers))
        hidden = EagerPass(decoder.stack).run(cache, rows, lambda: None)
        wanted = decoder.logits(hidden).cpu()
        if quant == "none":
            launched = wanted
            oracle = files if adapter is None else merged(files, adapter, lambda _, rank: 8 / rank)
            wanted = logits(decoder_of(oracle), 20)
            assert_close(launched, wanted, decoder.dtype)
        assert_close(logits(decoder, 20).cpu(), wanted, decoder.dtype)
        for count in (1, 1, 1, 3, 3, 3):  # launched one by one, captured, replayed
            found = decoder.decode(cache, slots[-count:], lambda: None).rows.cpu()
            assert_close(found, wanted[-count:], decoder.dtype)
        assert all((wanted - other).norm() > 0.1 * other.norm() for other in seen)
        seen.append(wanted)
