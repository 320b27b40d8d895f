"""The embedded model, from its GGUF file and as safetensors, against llama.cpp itself.

    .venv/bin/pip install --only-binary :all: --no-deps xllamacpp
    .venv/bin/python -m pytest tests/engine/test_against_llama_cpp.py

Without that package it is skipped. llama.cpp rounds what it multiplies with blocks to 8 bits, which
we do not: logits are compared strictly with those of a copy of the file whose matrices are float32,
and with those of the file itself as far as that rounding lets them be the same.
"""

import functools
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from safetensors.torch import save_file

from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache

from ..tolerance import assert_close

xllamacpp = pytest.importorskip("xllamacpp", reason="no xllamacpp; see the first lines")
pytestmark = pytest.mark.slow

SOURCE = Path(__file__).read_text(encoding="utf-8")
TEXTS = [SOURCE, "x = 'é日本😀'\t\r\n  y", "function f() {\n\treturn 10_000 + '' // 🎉\n}\n\n\n"]
LENGTHS = (1, 7, 60, 400)
NUM_DECODED = 24
# Products with what is rounded to 8 bits are about as exact as bfloat16's.
DTYPES = {"gguf": torch.bfloat16, "gguf, float32": torch.float32}


def in_float32(source, target):
    """Write a GGUF file's tensors as float32, and all that it says as it is."""
    reader = GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if name[:5] != "GGUF."}
    writer = GGUFWriter(target, fields.pop("general.architecture").contents())
    fields.pop("general.file_type", None)
    for name, field in fields.items():
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def as_folder(source, target):
    """Write a GGUF file of Llama's as what it was converted from: rows of heads in halves again."""
    target.mkdir()
    reader = GGUFReader(source)
    said = {
        name.removeprefix("llama."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("llama.")
    }
    heads, kv_heads = said["attention.head_count"], said["attention.head_count_kv"]
    whole = {"token_embd": "embed_tokens", "output_norm": "norm"}
    parts = {
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        **{"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"},
        **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
        "ffn_norm": "post_attention_layernorm",
    }
    tensors = {}
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                count = heads if part == "attn_q" else kv_heads
                split = values.reshape(count, -1, 2, values.shape[1])
                values = split.swapaxes(1, 2).reshape(values.shape)
            name = f"layers.{layer}.{parts[part]}"
        else:
            name = whole[name]
        tensors[f"model.{name}.weight"] = torch.from_numpy(values.copy())
    save_file(tensors, target / "model.safetensors")
    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        **{"hidden_size": said["embedding_length"], "num_hidden_layers": said["block_count"]},
        **{"intermediate_size": said["feed_forward_length"], "num_attention_heads": heads},
        "rms_norm_eps": said["attention.layer_norm_rms_epsilon"],
        "num_key_value_heads": kv_heads,
        **{"rope_theta": said["rope.freq_base"], "max_position_embeddings": said["context_length"]},
        **{"vocab_size": len(tensors["model.embed_tokens.weight"]), "tie_word_embeddings": True},
        **{"bos_token_id": 0, "eos_token_id": 0},
    }
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "fim.json"):
        (target / name).write_bytes(EMBEDDED_FILE.with_name(name).read_bytes())
    return target


class Peer:
    """llama.cpp with one model file: its tokens and its log-probabilities."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.port = 1024, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
        params.cache_ram_mib = 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def ask(self, path, task):
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(task).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def tokens(self, text):
        task = {"content": text, "add_special": False, "parse_special": False}
        return self.ask("/tokenize", task)["tokens"]

    @functools.lru_cache  # noqa: B019
    def complete(self, token_ids, num_tokens, num_shown):
        """Return the tokens that follow, and of each place the likeliest with their logarithms."""
        task = {"prompt": list(token_ids), "n_predict": num_tokens, "n_probs": num_shown}
        task |= {"temperature": 0, "samplers": ["temperature"], "ignore_eos": False}
        told = self.ask("/completion", task | {"cache_prompt": False})
        return [
            (place["id"], {each["id"]: each["logprob"] for each in place["top_logprobs"]})
            for place in told["completion_probabilities"]
        ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return {
        "gguf": EMBEDDED_FILE,
        "gguf, float32": in_float32(EMBEDDED_FILE, folder / "m.gguf"),
        "safetensors": as_folder(EMBEDDED_FILE, folder / "m"),
    }


@pytest.fixture(scope="module")
def ours(files):
    def load(path):
        loaded = load_model(path, torch.float32)
        return Decoder(loaded.config, loaded.tensors), loaded.tokenizer

    return {name: load(path) for name, path in files.items()}


@pytest.fixture(scope="module", params=["gguf", "gguf, float32"])
def peer(request, files):
    return request.param, Peer(files[request.param])


def log_probabilities(decoder, token_ids, num_last=1):
    cache = KVCache(decoder.config, len(token_ids), decoder.dtype, decoder.device)
    slots = cache.append(np.array(token_ids), np.arange(len(token_ids)))
    found = decoder.logits(decoder.forward(cache, slots, lambda: None))[-num_last:]
    return found.double().log_softmax(-1)


def test_tokens_are_llama_cpps(peer, ours):
    for text in TEXTS:
        for _, tokenizer in ours.values():
            assert tokenizer.encode(text).token_ids.tolist() == peer[1].tokens(text)


@pytest.mark.parametrize("kind", ["gguf", "gguf, float32", "safetensors"])
def test_logits_are_llama_cpps(peer, ours, kind):
    (name, server), (decoder, tokenizer) = peer, ours[kind]
    token_ids = tuple(tokenizer.encode(SOURCE).token_ids.tolist())
    for length in LENGTHS:
        ((_, shown),) = server.complete(token_ids[:length], 1, decoder.config.vocab_size)
        expected = torch.full((decoder.config.vocab_size,), -torch.inf, dtype=torch.float64)
        expected[list(shown)] = torch.tensor(list(shown.values()), dtype=torch.float64)
        assert expected.isfinite().all()
        found = log_probabilities(decoder, token_ids[:length])[0]
        # Logits have no common zero, so each around its own mean.
        assert_close(found - found.mean(), expected - expected.mean(), DTYPES[name])


@pytest.mark.parametrize("peer", ["gguf, float32"], indirect=True)  # else 8 bits may decide
@pytest.mark.parametrize("kind", ["gguf", "gguf, float32", "safetensors"])
def test_decoded_tokens_are_llama_cpps(peer, ours, kind):
    (_, server), (decoder, tokenizer) = peer, ours[kind]
    token_ids = tokenizer.encode(SOURCE).token_ids[:200].tolist()
    places = server.complete(tuple(token_ids), NUM_DECODED, 5)
    written = [token_id for token_id, _ in places]
    found = log_probabilities(decoder, token_ids + written[:-1], len(written))
    assert found.argmax(-1).tolist() == written
    for row, (_, shown) in zip(found, places, strict=True):
        expected = torch.tensor(list(shown.values()), dtype=torch.float64)
        assert torch.allclose(row[list(shown)], expected, atol=1e-2)
