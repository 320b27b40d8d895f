"""GGUF files of every family, written by llama.cpp's conventions, are the same models.

Names are the gguf library's own; what the converter does to values and which keys it writes is as
in llama.cpp's `conversion/` (gemma.py, granite.py, llama.py, mellum.py, phi.py, base.py).
"""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from keyturn.engine.files.adapter import read_adapter
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.kernels.weights.blocks import BlockMatrix

from ..tolerance import assert_close
from . import crafted_gguf as crafted
from .families import CASES, make_model
from .test_adapter import PARTS, save_adapter

PERMUTED = ("llama", "granite", "smollm3")  # rotate neighbouring dimensions
# Architectures that the library does not know yet, and one whose tensors have the same names.
LIKE = {"mellum": "qwen3moe"}
LENGTH = 40
CONVERTED = [case for case in CASES if case.gguf]


def permuted(rows, heads):
    """Reorder query or key rows as llama.cpp's converter does."""
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def bands(rope, head_dim):
    """Return what Llama 3's frequencies are divided by, as the converter writes it."""
    trained, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((trained * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def split(state):
    """Yield names and values as the converter writes them: an MLP's two inputs by themselves."""
    for name, tensor in state.items():
        values = tensor.numpy()
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", values
        elif "shared_mlp.input_linear" in name:
            gate, up = np.split(values, 2)
            yield name.replace("shared_mlp.input_linear", "mlp.gate_proj"), gate
            yield name.replace("shared_mlp.input_linear", "mlp.up_proj"), up
        else:
            yield name.replace("shared_mlp.output_linear", "mlp.down_proj"), values


def fused(tensors):
    """Return names and values, those of a layer's queries, keys and values as one tensor."""
    found = dict(tensors)
    for name in [name for name in found if ".attn_q." in name]:
        parts = [found.pop(name.replace("attn_q", f"attn_{part}")) for part in "qkv"]
        found[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
    return found


def write(path, case, model, tokenizer, kind="F32", gather=dict):
    config, arch = model.config, case.gguf
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[LIKE.get(arch, arch)]
    writer = gguf.GGUFWriter(path, arch)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = getattr(config, "shared_intermediate_size", None) or config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if arch in ("qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "mellum"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.norm_epsilon)
    ropes = config.rope_parameters
    rope = ropes.get("full_attention", ropes)
    if arch not in ("gemma", "gemma2"):
        writer.add_rope_freq_base(rope["rope_theta"])
    if arch in ("stablelm", "phi2", "llama", "granite", "smollm3"):
        share = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * head_dim))
    if arch == "stablelm":
        writer.add_parallel_residual(config.use_parallel_residual)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if arch in ("mellum", "qwen3moe"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "mellum":
        writer.add_sliding_window_pattern([k == "sliding_attention" for k in config.layer_types])
        writer.add_float32("mellum.rope.freq_base_swa", ropes["sliding_attention"]["rope_theta"])
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch in ("gemma2", "gemma3", "mellum"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", bands(rope, head_dim))
    raw = json.loads(tokenizer.read_text())
    names = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name[:1] == "<" and len(name) > 1 else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in raw["model"]["merges"]])
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = []
    for name, values in split(model.state_dict()):
        if name.startswith("lm_head") and config.tie_word_embeddings:
            continue
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if arch in PERMUTED and f".{part}." in name:
                values = permuted(values, count)
        stored = known.get_name(name, try_suffixes=(".weight", ".bias"))
        tensors.append((stored, values.astype(np.float32)))
    for stored, values in gather(tensors).items():
        wanted = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        if wanted.name == "F32":
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(files, token_ids):
    return logits_of(Decoder(files.config, files.tensors), token_ids)


def logits_of(decoder, token_ids):
    cache = KVCache(decoder.config, LENGTH, decoder.dtype, decoder.device)
    slots = cache.append(token_ids, np.arange(len(token_ids)))
    return decoder.logits(decoder.forward(cache, slots, lambda: None))


@pytest.fixture(params=CONVERTED, ids=lambda case: case.name)
def case(request):
    if not request.param.is_there:
        pytest.skip("this transformers does not have it")
    return request.param


def assert_is_the_model(files, model):
    token_ids = np.random.default_rng(3).integers(0, model.config.vocab_size, LENGTH)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None]).logits[0]
    found = logits(files, token_ids)
    assert ((found - expected).norm() / expected.norm()) < 2e-3
    return found, expected


def rounded(model, kind):
    """Round a model's matrices, those of its experts too, as blocks of a kind do."""
    wanted = GGMLQuantizationType[kind]
    for _, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values = quants.dequantize(quants.quantize(parameter.detach().numpy(), wanted), wanted)
            parameter.data = torch.from_numpy(values.reshape(parameter.shape).copy())
    return model


def test_a_converted_model_equals_transformers(case, tiny_model, tmp_path):
    model = make_model(case)
    path = write(tmp_path / "m.gguf", case, model, tiny_model / "tokenizer.json")
    assert_close(*assert_is_the_model(load_model(path, torch.float32), model), torch.float32)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("arch", ["phi2", "llama", "qwen2"])
def test_queries_keys_and_values_may_be_one_tensor(arch, kind, tiny_model, tmp_path):
    """As in phi-2's first files, whose converter kept the model's own."""
    case = next(case for case in CASES if case.gguf == arch)
    model = make_model(case)
    path = write(tmp_path / "m.gguf", case, model, tiny_model / "tokenizer.json", kind, fused)
    assert_is_the_model(load_model(path, torch.float32), rounded(model, kind))


@pytest.mark.parametrize("arch", ["llama", "granite"])
def test_an_adapter_beside_permuted_rows_equals_transformers_with_it_merged(
    arch, tiny_model, tmp_path
):
    case = next(case for case in CASES if case.gguf == arch)
    model = make_model(case)
    path = write(tmp_path / "m.gguf", case, model, tiny_model / "tokenizer.json")
    of_attention = [f"self_attn.{part}" for part in PARTS["self_attn"]]
    shapes = {
        name: weight.shape
        for name, weight in model.state_dict().items()
        if name.endswith(tuple(f"{part}.weight" for part in of_attention))
    }
    factors = save_adapter(tmp_path / "a", shapes, strength=0.1)
    token_ids = np.random.default_rng(3).integers(0, model.config.vocab_size, LENGTH)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        before = model(torch.from_numpy(token_ids)[None]).logits[0]
        for name in shapes:
            down, up = factors[name]
            parameters[name] += 8 / len(down) * up @ down
        expected = model(torch.from_numpy(token_ids)[None]).logits[0]
    files = load_model(path, torch.float32)
    decoder = Decoder(files.config, files.tensors)
    decoder.adapt(read_adapter(tmp_path / "a", files.config))
    for rows in (LENGTH, 12):  # one pass and another
        found = logits_of(decoder, token_ids[:rows])
        assert_close(found, expected[:rows], torch.float32)
        assert not torch.allclose(found, before[:rows], atol=1e-2)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("arch", ["granite", "mellum"])
def test_factors_and_experts_are_in_blocks_too(arch, kind, tiny_model, tmp_path):
    """Rounded as far as the blocks round, and no further: fp16 holds a scale to 1 in 2,000."""
    case = next(case for case in CASES if case.gguf == arch)
    model = make_model(case)
    path = write(tmp_path / "m.gguf", case, model, tiny_model / "tokenizer.json", kind)
    files = load_model(path, torch.float32)
    in_blocks = [name for name, part in files.tensors.items() if isinstance(part, BlockMatrix)]
    assert any("down_proj" in name for name in in_blocks)
    assert_is_the_model(files, rounded(model, kind))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expert_count": 1 << 30}, "too few for 4 layers of 1073741824 experts"),
        ({"expert_count": 5}, r"ffn_gate_exps.*shape \[6, 32, 64\] instead of \[5, 32, 64\]"),
        ({"expert_count": None}, "expert_count' is missing"),
        ({"expert_used_count": 7}, "7 of 6 experts"),
        ({"expert_feed_forward_length": 0}, "moe_intermediate_size is 0"),
        ({"expert_feed_forward_length": 1 << 30}, "shape"),
    ],
)
def test_experts_that_are_not_in_the_file_are_one_error(changes, reason, tiny_model, tmp_path):
    case = next(case for case in CASES if case.gguf == "mellum")
    path = write(tmp_path / "m.gguf", case, make_model(case), tiny_model / "tokenizer.json")
    # The one array of truth values, which nothing else writes.
    changes = {"attention.sliding_window_pattern": np.array([1, 1, 1, 0], np.int32)} | changes
    changed = {f"mellum.{key}": value for key, value in changes.items()}
    path.write_bytes(crafted.rewritten(GGUFFile(path), metadata=changed))
    with pytest.raises(ModelLoadError, match=reason) as error:
        load_model(path, torch.float32)
    assert str(path) in str(error.value) and ";" in str(error.value)
