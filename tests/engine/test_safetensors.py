"""Folders with safetensors: variants, and every way to be damaged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keyturn.engine.files.weights import load_model
from keyturn.engine.wire.errors import ModelLoadError

MARKS = {0, 1, 2, 3}  # of the tiny model


def edited(tiny_model, folder, remove=(), **changes):
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in remove}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folder_loads_in_the_asked_dtype(tiny_model):
    model = load_model(tiny_model, torch.bfloat16)
    stored = load_file(tiny_model / "model.safetensors")
    assert model.tensors.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(model.tensors[name], tensor.bfloat16())
    assert model.fim.family == "StarCoder" and model.tokenizer.end_ids == MARKS


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_model_without_marks_is_refused(continuing_model, name):
    assert load_model(continuing_model, torch.float32).fim is None
    content = {"chat_template": "{{ x }}"} if name.endswith("json") else "{{ x }}"
    (continuing_model / name).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match="answer in a chat.*Qwen2.5-Coder.*fim.json") as error:
        load_model(continuing_model, torch.float32)
    assert "\n" not in str(error.value)


def test_sharded_folder_is_the_same_model(tiny_model, tmp_path):
    folder = edited(tiny_model, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    model = load_model(folder, torch.float32)
    assert all(torch.equal(model.tensors[name], tensors[name]) for name in names)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="part-1.safetensors"):
        load_model(folder, torch.float32)
    index.write_text("{}")
    with pytest.raises(ModelLoadError, match="names no files"):
        load_model(folder, torch.float32)


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "scaling", "theta"),
    [
        ({"rope_scaling": None}, None, 10000.0),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, LINEAR, 10000.0),
        ({"rope_scaling": LINEAR, "rope_theta": 5e5}, LINEAR, 5e5),
        ({"rope_parameters": {**LINEAR, "rope_theta": 7e4}}, LINEAR, 7e4),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3}}, None, 3.0),
    ],
)
def test_rotary_spellings_of_both_transformers(tiny_model, tmp_path, changes, scaling, theta):
    config = load_model(edited(tiny_model, tmp_path / "m", **changes), torch.float32).config
    assert (config.rope_scaling, config.rope_theta) == (scaling, theta)


def test_partial_rotary_factor_counts_dimensions(tiny_model, tmp_path):
    changes = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
    config = load_model(edited(tiny_model, tmp_path / "m", **changes), torch.float32).config
    assert (config.rotary_dim, config.head_dim, config.rope_theta) == (4, 8, 10000.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox' is not supported; use.*Qwen"),
        ({"model_type": "qwen3_5"}, "'qwen3_5' has layers that keep a state.*delta net.*; use"),
        ({"model_type": "gpt_bigcode"}, "adds positions to the embeddings.*; use"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention", "mamba"]}, "Mamba.*; use"),
        ({"model_type": "gemma4"}, "share rows.*; use"),
        ({"model_type": "qwen3", "use_bidirectional_attention": True}, "what comes after"),
        ({"model_type": None}, "None"),
        ({"hidden_act": "relu2"}, "relu2"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"model_type": "mistral", "sliding_window": -1}, "sliding_window is -1"),
        ({"model_type": "qwen2"}, "q_proj.bias"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_hidden_layers": 2_000_000_000}, "layers"),
        ({"num_hidden_layers": "2"}, "num_layers"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_key_value_heads": 3}, "share"),
        ({"hidden_size": 48}, "shape|shares"),
        ({"vocab_size": 399}, "399|shape"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"rope_theta": "x"}, "malformed"),
        ({"rope_scaling": "linear"}, "no object"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor"),
        ({"rms_norm_eps": -1.0}, "norm_eps"),
        ({"norm_bias": True}, "layers with biases of norms"),
        ({"use_parallel_residual": True}, "no layer of the architecture 'llama'"),
        ({"qk_layernorm": True}, "normed queries"),
        ({"model_type": "mistral", "sliding_window": "x"}, "malformed"),
    ],
)
def test_unusable_config_is_one_line(tiny_model, tmp_path, changes, reason):
    with pytest.raises(ModelLoadError, match=reason) as error:
        load_model(edited(tiny_model, tmp_path / "m", **changes), torch.float32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_or_cut_file_of_a_folder_is_named(tiny_model, tmp_path, name):
    folder = edited(tiny_model, tmp_path / "m")
    content = (folder / name).read_bytes()
    for size in (len(content) // 2, 10, 0):
        (folder / name).write_bytes(content[:size])
        with pytest.raises(ModelLoadError, match=name) as error:
            load_model(folder, torch.float32)
        assert "\n" not in str(error.value)
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=name):
        load_model(folder, torch.float32)


@pytest.mark.parametrize("extra", ["self_attn.q_norm.weight", "self_attn.k_proj.bias"])
def test_a_layers_tensor_that_the_config_does_not_speak_of_is_refused(tiny_model, tmp_path, extra):
    folder = edited(tiny_model, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of no consequence
    save_file(tensors, folder / "model.safetensors")
    load_model(folder, torch.float32)
    tensors[f"model.layers.1.{extra}"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=extra):
        load_model(folder, torch.float32)


def test_integer_weights_are_refused(tiny_model, tmp_path):
    folder = edited(tiny_model, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="int8"):
        load_model(folder, torch.float32)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_folder_that_transformers_saved_loads_whole(tiny_model, tmp_path, family):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    config = getattr(transformers, family + "Config")(**sizes, **heads, sliding_window=None)
    saved = getattr(transformers, family + "ForCausalLM")(config)
    saved.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    shutil.copy(tiny_model / "tokenizer.json", tmp_path / "m")
    model = load_model(tmp_path / "m", torch.float32)
    expected = saved.state_dict()
    if model.config.tied_embeddings:
        expected.pop("lm_head.weight")
    assert model.tensors.keys() == expected.keys()
    assert all(torch.equal(model.tensors[name], expected[name]) for name in expected)
    assert model.config.rope_theta == config.rope_parameters["rope_theta"]
    assert model.config.norm_eps == config.rms_norm_eps


def test_start_and_end_tokens_of_a_folder(tiny_model, tmp_path):
    from tokenizers import Tokenizer, processors

    plain = load_model(tiny_model, torch.float32).tokenizer
    assert (plain.bos_id, plain.eos_id) == (None, 0)
    folder = edited(tiny_model, tmp_path / "m", bos_token_id=5, eos_token_id=[7, 9_999])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 8}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    asked = load_model(folder, torch.float32).tokenizer
    assert asked.bos_id == 5 and asked.end_ids == {*MARKS, 7, 8}
    (folder / "tokenizer_config.json").unlink()
    assert load_model(folder, torch.float32).tokenizer.bos_id is None
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    name = raw.id_to_token(5)
    raw.post_processor = processors.TemplateProcessing(f"{name} $A", special_tokens=[(name, 5)])
    raw.save(str(folder / "tokenizer.json"))
    assert load_model(folder, torch.float32).tokenizer.bos_id == 5


def test_separators_of_files_and_repositories_end_a_text_that_is_only_continued(
    continuing_model,
):
    from tokenizers import AddedToken, Tokenizer

    names = ["<filename>", "<|repo_name|>", "<end_of_turn>"]
    raw = Tokenizer.from_file(str(continuing_model / "tokenizer.json"))
    first = raw.get_vocab_size()
    raw.add_special_tokens([AddedToken(name, special=True) for name in names])
    raw.save(str(continuing_model / "tokenizer.json"))
    folder = continuing_model
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([embedding, embedding[: len(names)]])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += len(names)
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder, torch.float32)
    assert model.fim is None and model.tokenizer.eos_id == 0
    assert model.tokenizer.end_ids == {*MARKS, first, first + 1, first + 2}
