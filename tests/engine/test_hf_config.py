"""Configs as published, in transformers 4's spelling, mean what transformers 5 makes of them."""

import json

import pytest
from transformers import CONFIG_MAPPING

from keyturn.engine.files.architectures import REFUSED
from keyturn.engine.files.hf_config import read_config
from keyturn.engine.model.config import Rope
from keyturn.engine.wire.errors import ModelLoadError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
MELLUM = {"model_type": "mellum", "moe_intermediate_size": 32}
GEMMA3 = {"model_type": "gemma3_text", "sliding_window": 5}
# What published configs say, and what of that a layer has; by `model_type`.
PUBLISHED = {
    "gemma, CodeGemma": (
        {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None, "head_dim": 32},
        {"activation": "gelu_pytorch_tanh", "tied_embeddings": True, "embedding_multiplier": 8.0},
    ),
    "gemma2": (
        {
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": 32,
            "sliding_window": 1024,
            "query_pre_attn_scalar": 64,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {
            "sliding_windows": (1024, None),
            "score_cap": 50.0,
            "logit_cap": 30.0,
            "attention_multiplier": 0.125,
            "post_norms": True,
            "qk_norm": False,
        },
    ),
    "gemma3": (
        {
            "model_type": "gemma3_text",
            "head_dim": 32,
            "sliding_window": 512,
            "sliding_window_pattern": 3,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "query_pre_attn_scalar": 64,
        },
        {
            "sliding_windows": (512, 512, None),
            "ropes": (
                Rope(1e4, 32),
                Rope(1e4, 32),
                Rope(1e6, 32, {"factor": 8.0, "rope_type": "linear"}),
            ),
            "qk_norm": True,
        },
    ),
    "smollm3": (
        {"model_type": "smollm3", "no_rope_layers": [1, 1, 0] * 4, "rope_theta": 5e6},
        {"ropes": (Rope(5e6, 16), Rope(5e6, 16), None) * 4, "tied_embeddings": True},
    ),
    "smollm3, not listed": (
        {"model_type": "smollm3"},
        {"ropes": (Rope(2e6, 16), Rope(2e6, 16), Rope(2e6, 16), None)},
    ),
    "starcoder2": (
        {
            "model_type": "starcoder2",
            "sliding_window": 1024,
            "norm_epsilon": 1e-5,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_theta": 999999.5,
        },
        {
            "norm": "layer",
            "norm_bias": True,
            "is_gated": False,
            "attention_bias": True,
            "output_bias": True,
            "mlp_bias": True,
            "sliding_windows": (1024,),
            "tied_embeddings": True,
        },
    ),
    "stablelm": (
        {"model_type": "stablelm", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        {"norm": "layer", "rotary_dim": 4, "attention_bias": False, "output_bias": False},
    ),
    "phi": (
        {
            "model_type": "phi",
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "num_key_value_heads": None,
        },
        {"num_kv_heads": 4, "rotary_dim": 8, "is_parallel": True, "head_bias": True},
    ),
    "granite 4.0": (
        {
            "model_type": "granitemoehybrid",
            "layer_types": ["attention"] * 12,
            "shared_intermediate_size": 80,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12,
            "residual_multiplier": 0.22,
            "logits_scaling": 8,
            "rms_norm_eps": 1e-5,
        },
        {
            "intermediate_size": 80,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logit_multiplier": 0.125,
            "ropes": (),
        },
    ),
    "granite 4.0 without positions": (
        {
            "model_type": "granitemoehybrid",
            "layer_types": ["attention"] * 12,
            "shared_intermediate_size": 80,
            "num_local_experts": 0,
        },
        {"ropes": (None,)},
    ),
    "qwen2, the last layers slide": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 256,
            "max_window_layers": 9,
        },
        {"sliding_windows": (None,) * 9 + (256,) * 3, "attention_bias": True},
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 32, "sliding_window": None, "max_window_layers": 9},
        {"qk_norm": True, "sliding_windows": (), "head_dim": 32, "attention_bias": False},
    ),
    "deepseek-coder": (
        {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(name, tmp_path):
    given, expected = PUBLISHED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES | given))
    config = read_config(path)
    assert {key: getattr(config, key) for key in expected} == expected


def test_windows_that_nothing_leaves_are_none(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES | PUBLISHED["gemma3"][0]))
    config = read_config(path)
    assert config.within(513).sliding_windows == (512, 512, None)
    assert config.within(512).sliding_windows == ()
    assert [block.rope for block in config.within(512).blocks()] == [Rope(1e4, 32), config.rope(2)]


@pytest.mark.parametrize("family", sorted(REFUSED.keys() & CONFIG_MAPPING.keys()))
def test_what_is_refused_is_so_as_the_installed_transformers_writes_it(family, tmp_path):
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError) as error:
        read_config(tmp_path / "config.json")
    assert REFUSED[family] in str(error.value) and "; use one" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({**MELLUM, "mlp_layer_types": ["dense", "sparse"]}, "beside"),
        ({**MELLUM, "model_type": "qwen3_moe", "mlp_only_layers": [0]}, "beside"),
        ({**MELLUM, "model_type": "qwen3_moe", "decoder_sparse_step": 2}, "beside"),
        ({**MELLUM, "moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ({**MELLUM, "num_experts_per_tok": 99}, "99 of 64"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": -1}, "malformed|attention_multiplier"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1}, "score_cap is -1"),
        ({"model_type": "granite", "logits_scaling": "x"}, "malformed"),
        ({**GEMMA3, "sliding_window_pattern": "x"}, "malformed"),
        ({"model_type": "smollm3", "no_rope_layers": 5}, "malformed"),
        ({"model_type": "granitemoehybrid"}, "experts"),
        ({"model_type": "phi", "qk_layernorm": True}, "normed queries"),
    ],
)
def test_nonsense_is_one_line(changes, reason, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES | changes))
    with pytest.raises(ModelLoadError, match=reason) as error:
        read_config(path)
    assert "\n" not in str(error.value) and ";" in str(error.value)
