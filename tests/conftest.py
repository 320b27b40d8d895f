"""Fixtures for every layer: a tiny random model that loads in milliseconds."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Triton reads this where it is first imported, for its own library too, and transformers imports
# it: so here, before any test. On a machine with a GPU TRITON_INTERPRET=0 compiles the kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

# OpenMP reads this when torch is first imported. Threads that spin for each other take a busy
# machine's cores from the one that they wait for: tests take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A text that stays as it is: what a random model writes depends on its tokenizer.
CORPUS = Path(__file__).parents[1] / "LICENSE"
SPECIALS = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config, tokenizer and random weights; fills in the middle like StarCoder."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab, hidden, heads, kv_heads, layers = tokenizer.get_vocab_size(), 32, 4, 2, 2
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.2

    tensors = {"model.embed_tokens.weight": weight(vocab, hidden) * 5}
    tensors["model.norm.weight"] = torch.ones(hidden)
    kv_width = hidden // heads * kv_heads
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = torch.ones(hidden)
        tensors[at + "post_attention_layernorm.weight"] = torch.ones(hidden)
        tensors[at + "self_attn.q_proj.weight"] = weight(hidden, hidden)
        tensors[at + "self_attn.k_proj.weight"] = weight(kv_width, hidden)
        tensors[at + "self_attn.v_proj.weight"] = weight(kv_width, hidden)
        tensors[at + "self_attn.o_proj.weight"] = weight(hidden, hidden)
        tensors[at + "mlp.gate_proj.weight"] = weight(64, hidden)
        tensors[at + "mlp.up_proj.weight"] = weight(64, hidden)
        tensors[at + "mlp.down_proj.weight"] = weight(hidden, 64)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


@pytest.fixture
def continuing_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model without marks for filling in the middle."""
    folder = tmp_path / "continuing"
    shutil.copytree(tiny_model, folder)
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.replace("fim_", "old_"), encoding="utf-8")
    return folder
