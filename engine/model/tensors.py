"""The tensors of a layer: the one table of their names in files, their shapes and biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.weights.linear import Matrix, fused
from .config import ModelConfig

# A matrix (N, K) and its bias (N,) or None.
Projection = tuple[Matrix, Tensor | None]


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a layer as files have it; parts of one projection share their input.

    Attributes:
        name: Hugging Face's, within the layer.
        gguf_name: llama.cpp's, within the layer.
        rows: which size it has rows of, see `sizes`.
        columns: likewise.
        bias: the field of `ModelConfig` that says whether it has a bias.
    """

    name: str
    gguf_name: str
    rows: str
    columns: str
    bias: str


# By the fields of `layers.Layer`: the norms' names in both kinds of file, and the projections.
NORMS = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}
PROJECTIONS = {
    "qkv": (
        Part("self_attn.q_proj", "attn_q", "queries", "hidden", "attention_bias"),
        Part("self_attn.k_proj", "attn_k", "keys", "hidden", "attention_bias"),
        Part("self_attn.v_proj", "attn_v", "keys", "hidden", "attention_bias"),
    ),
    "output": (Part("self_attn.o_proj", "attn_output", "hidden", "queries", "output_bias"),),
    "gate_up": (
        Part("mlp.gate_proj", "ffn_gate", "inner", "hidden", "mlp_bias"),
        Part("mlp.up_proj", "ffn_up", "inner", "hidden", "mlp_bias"),
    ),
    "down": (Part("mlp.down_proj", "ffn_down", "hidden", "inner", "mlp_bias"),),
}
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_WHOLE_IN_GGUF = {
    EMBEDDING: "token_embd.weight",
    NORM: "output_norm.weight",
    HEAD: "output.weight",
}
_IN_GGUF = dict(NORMS.values()) | {
    part.name: part.gguf_name for parts in PROJECTIONS.values() for part in parts
}


def gguf_name(name: str) -> str:
    """Return the name in a GGUF file of a tensor with this Hugging Face name."""
    if name in _WHOLE_IN_GGUF:
        return _WHOLE_IN_GGUF[name]
    _, _, layer, part = name.split(".", 3)
    part, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{_IN_GGUF[part]}.{kind}"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a model of this shape has."""
    size = {
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "queries": config.num_heads * config.head_dim,
        "keys": config.num_kv_heads * config.head_dim,
    }
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        NORM: (config.hidden_size,),
    }
    if not config.tied_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        for name, _ in NORMS.values():
            shapes[f"{at}{name}.weight"] = (config.hidden_size,)
        for part in (part for parts in PROJECTIONS.values() for part in parts):
            shapes[f"{at}{part.name}.weight"] = (size[part.rows], size[part.columns])
            if getattr(config, part.bias):
                shapes[f"{at}{part.name}.bias"] = (size[part.rows],)
    return shapes


def take_norms(tensors: dict[str, Matrix], layer: int) -> dict[str, Tensor]:
    """Take a layer's norms out of the tensors; keys are those of `NORMS`."""
    taken = {}
    for field, (name, _) in NORMS.items():
        weight = tensors.pop(f"model.layers.{layer}.{name}.weight")
        assert isinstance(weight, Tensor), "a vector is never in blocks"
        taken[field] = weight
    return taken


def take_projections(
    tensors: dict[str, Matrix], layer: int, dtype: torch.dtype
) -> dict[str, Projection]:
    """Take a layer's projections out of the tensors; keys are those of `PROJECTIONS`.

    Parts lie one below the other, in blocks if all are of one kind, else as values of `dtype`.
    """
    at = f"model.layers.{layer}."
    taken: dict[str, Projection] = {}
    for field, parts in PROJECTIONS.items():
        weight = fused([tensors.pop(f"{at}{part.name}.weight") for part in parts], dtype)
        found = [tensors.pop(f"{at}{part.name}.bias", None) for part in parts]
        biases = [bias for bias in found if isinstance(bias, Tensor)]
        taken[field] = (weight, torch.cat(biases) if biases else None)
    return taken
