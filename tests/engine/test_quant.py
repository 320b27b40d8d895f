"""A model loaded through bit planes: its logits, and where that is refused."""

import dataclasses
import math
import os
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from keyturn.engine.engine import Engine
from keyturn.engine.files.packing import Packing
from keyturn.engine.files.streamed import StreamedTensors
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.tensors import EMBEDDING, PROJECTIONS, expected_shapes
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import BadRequest, ModelLoadError
from keyturn.kernels import dispatch
from keyturn.kernels.matmul import dense, gpu_linear
from keyturn.kernels.matmul.bit_planes import launch
from keyturn.kernels.matmul.reference import dequantize
from keyturn.kernels.matmul.table import DotTile, GemvTile, Plan
from keyturn.kernels.weights.packed import quantize_planes

from ..tolerance import assert_close

IS_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
CONFIG = EngineConfig("auto", "auto", 1, 1 << 28, 0, 256)


def check():
    pass


@pytest.fixture
def logits(monkeypatch):
    """Return what computes the logits of six tokens: all in one pass, and the last again alone."""
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if IS_INTERPRETED:  # it likes few large programs
        plan = Plan(GemvTile(64, 32, 1, 0), None, DotTile(64, 2, 1, 1, 1), 4, 0, 65)
        for module in (launch, dense):
            monkeypatch.setattr(module, "plan_for", lambda *_: plan)

    def of(files, bits=None):
        monkeypatch.setenv(dispatch.VARIABLE, "reference" if bits is None else "triton")
        tensors = {name: part.to(DEVICE) for name, part in files.tensors.items()}
        decoder = Decoder(files.config, tensors, bits)
        cache = KVCache(files.config, 8, decoder.dtype, DEVICE)
        slots = cache.append(np.arange(6) * 7, np.arange(6))
        found = decoder.logits(decoder.forward(cache, slots, check))
        return found, decoder.last_logits(cache, slots[-1:], check)

    return of


@pytest.mark.parametrize("bits", [3])
def test_a_model_of_bit_planes_computes_with_the_rounded_weights(logits, tiny_model, bits):
    files = load_model(tiny_model, torch.bfloat16)
    found, last = logits(files, bits)
    names = tuple(f"{part.name}.weight" for parts in PROJECTIONS.values() for part in parts)
    rounded = {
        name: dequantize(quantize_planes(part, bits, part.shape[1])).bfloat16()
        if name.endswith(names)
        else part
        for name, part in files.tensors.items()
    }
    expected, expected_last = logits(dataclasses.replace(files, tensors=rounded))
    assert_close(found, expected, torch.bfloat16)
    assert_close(last, expected_last, torch.bfloat16)


def test_eight_planes_give_the_logits_of_the_model(logits, tiny_model):
    files = load_model(tiny_model, torch.bfloat16)
    for found, expected in zip(logits(files, 8), logits(files), strict=True):
        assert_close(found, expected, torch.bfloat16)


def test_weights_are_read_as_they_are_rounded_and_a_matrix_at_a_time(
    monkeypatch, logits, tiny_model
):
    told, alive = [], {"now": 0, "most": 0}
    files = load_model(tiny_model, torch.bfloat16, lambda *args: told.append(args), streams=True)
    assert told == []
    size_of_largest = max(
        math.prod(shape) * 2
        for name, shape in expected_shapes(files.config).items()
        if name.startswith("model.layers.0.")
    )
    read = StreamedTensors.__getitem__

    def watched(self, name):
        tensor = read(self, name)
        if "_proj" in name:
            size = tensor.nbytes
            alive["now"] += size
            alive["most"] = max(alive.values())
            weakref.finalize(tensor, lambda: alive.update(now=alive["now"] - size))
        return tensor

    monkeypatch.setattr(StreamedTensors, "__getitem__", watched)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    decoder = Decoder(files.config, files.tensors, 4)
    assert len(files.tensors) == 0
    assert told[-1] == ("reading weights", 100)
    assert 0 < alive["most"] <= size_of_largest
    whole = Decoder(files.config, dict(load_model(tiny_model, torch.bfloat16).tensors), 4)
    for streamed, other in zip(decoder.stack.layers, whole.stack.layers, strict=True):
        assert torch.equal(streamed.qkv.weight.planes, other.qkv.weight.planes)
        assert torch.equal(streamed.mlp.down.weight.scales, other.mlp.down.weight.scales)


@pytest.mark.parametrize("quant", ["q4", "q8"])
def test_an_embedding_that_is_the_head_too_is_there_once(monkeypatch, tiny_model, quant):
    files, again = (
        load_model(tiny_model, torch.bfloat16, packing=Packing(quant, None), streams=True)
        for _ in range(2)
    )
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    decoder, blocks = Decoder(files.config, files.tensors), again.tensors[EMBEDDING]
    assert decoder.stack.embedding is decoder.stack.head.weight
    token_ids = torch.tensor([3, 3, 0, files.config.vocab_size - 1])
    assert torch.equal(decoder.stack.embed(token_ids), blocks.at(token_ids).values(torch.bfloat16))
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, files.config.hidden_size, generator=random)
    found = decoder.head_over(token_ids)(hidden)
    assert_close(found, decoder.logits(hidden)[:, token_ids], torch.bfloat16)


def test_a_tensor_that_cannot_be_used_is_named_when_it_is_taken(tiny_model, tmp_path):
    folder = tmp_path / "ints"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].int()}, folder / "model.safetensors")
    files = load_model(folder, torch.bfloat16, streams=True)
    with pytest.raises(ModelLoadError, match="up_proj.*holds torch.int32"):
        Decoder(files.config, files.tensors)


@pytest.mark.parametrize("rows", [1, 40, 41])
def test_planes_rounded_in_pieces_are_those_rounded_at_once(monkeypatch, rows):
    values = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows))
    expected = quantize_planes(values, 3, 32)
    monkeypatch.setattr(gpu_linear, "PIECE_VALUES", 20 * 96)
    found = gpu_linear.to_planes(values, 3)
    for name in ("planes", "scales", "locks"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_width_that_planes_do_not_hold_is_refused(monkeypatch, tiny_model):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    files = load_model(tiny_model, torch.bfloat16)
    config = dataclasses.replace(files.config, intermediate_size=80)
    with pytest.raises(ModelLoadError, match="80 columns.*leave quant out"):
        Decoder(config, dict(files.tensors), 4)


@pytest.mark.parametrize("quant", ["b1", "b9", "q5", "4", ""])
def test_another_quant_is_refused_before_anything_is_loaded(quant):
    with pytest.raises(BadRequest, match="q4, q8, b2, b3"):
        Engine(dataclasses.replace(CONFIG, device="cpu", quant=quant))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_quant_on_a_cpu_is_refused_with_the_remedy(dtype):
    with pytest.raises(BadRequest, match="needs an NVIDIA GPU.*use q4 or q8, or leave quant out"):
        Engine(dataclasses.replace(CONFIG, device="cpu", dtype=dtype, quant="b4"))


@pytest.mark.parametrize("quant", [None, "none"])
def test_no_quant_is_no_request(quant):
    Engine(dataclasses.replace(CONFIG, device="cpu", quant=quant))


@pytest.mark.gpu
@pytest.mark.skipif(IS_INTERPRETED, reason="needs TRITON_INTERPRET=0")
def test_an_engine_completes_and_patches_through_bit_planes(tiny_model):
    engine = Engine(EngineConfig("cuda", "auto", 0, 1 << 28, 0, 256, "b4"))
    text = "def add(first, second):\n    return first + second\n" * 9
    session = engine.open("d", text, path="a.py", model=str(tiny_model), policy="turn")
    params = CompletionParams(6, 0.0, 1.0, 0, (), 0.0)
    session.complete(100, params, check)
    session.edit([(0, 0, "import os\n")])
    assert session.complete(110, params, check).num_reused_tokens > 0
    with pytest.raises(BadRequest, match="dtype"):
        Engine(EngineConfig("cuda", "float32", 0, 1 << 28, 0, 256, "b4"))
