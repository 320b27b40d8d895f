"""The tensors of a layer: the one table of their names, their shapes and biases.

The names are those of Llama in Hugging Face's files, whatever a family calls them in its own
(`files/stored.py`); what Llama has not is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.weights.linear import Matrix, fused
from ...kernels.weights.packed import BitWeight, joined_planes
from .config import ModelConfig

# A matrix (N, K) and its bias (N,) or None.
Projection = tuple[Matrix | BitWeight, Tensor | None]


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a layer; parts of one projection share their input.

    Attributes:
        name: within the layer.
        rows: which size it has rows of, see `expected_shapes`.
        columns: likewise.
        bias: the field of `ModelConfig` that says whether it has a bias; "" never has one.
    """

    name: str
    rows: str
    columns: str
    bias: str


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The weights of one layer.

    Attributes:
        norms: weight and bias of each that it has, by the keys of `NORMS`.
        projections: by the keys of `PROJECTIONS`; "router", and "gate_up.0", "down.0" and so on, of
            experts.
    """

    norms: dict[str, tuple[Tensor, Tensor | None]]
    projections: dict[str, Projection]

    @property
    def matrices(self) -> dict[str, tuple[Matrix, Tensor | None]]:
        """Those of the projections that are no bit planes."""
        return {
            field: (weight, bias)
            for field, (weight, bias) in self.projections.items()
            if not isinstance(weight, BitWeight)
        }


# Before attention and before the MLP; of queries and keys; after attention and after the MLP.
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_post_norm": "attention_post_norm",
    "mlp_post_norm": "mlp_post_norm",
}
_OF_HEADS = ("query_norm", "key_norm")
PROJECTIONS = {
    "qkv": (
        Part("self_attn.q_proj", "queries", "hidden", "attention_bias"),
        Part("self_attn.k_proj", "keys", "hidden", "attention_bias"),
        Part("self_attn.v_proj", "keys", "hidden", "attention_bias"),
    ),
    "output": (Part("self_attn.o_proj", "hidden", "queries", "output_bias"),),
    "gate_up": (
        Part("mlp.gate_proj", "inner", "hidden", "mlp_bias"),
        Part("mlp.up_proj", "inner", "hidden", "mlp_bias"),
    ),
    "down": (Part("mlp.down_proj", "hidden", "inner", "mlp_bias"),),
}
_ROUTER = Part("mlp.router", "experts", "hidden", "")
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
NORM_BIAS, HEAD_BIAS = "model.norm.bias", "lm_head.bias"


def norms_of(config: ModelConfig) -> list[str]:
    """Return the keys of `NORMS` that a model's layers have."""
    found = ["attention_norm"] if config.is_parallel else ["attention_norm", "mlp_norm"]
    found += _OF_HEADS if config.qk_norm else ()
    return found + (["attention_post_norm", "mlp_post_norm"] if config.post_norms else [])


def projections_of(config: ModelConfig) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Yield the projections of a model's layers, by the keys of `LayerTensors.projections`."""
    for field, parts in PROJECTIONS.items():
        if field == "gate_up" and not config.is_gated:
            parts = parts[1:]
        if config.experts is None or field not in ("gate_up", "down"):
            yield field, parts
            continue
        for number in range(config.experts.num):
            of_expert = (part.name.replace("mlp.", f"mlp.experts.{number}.") for part in parts)
            pairs = zip(of_expert, parts, strict=True)
            yield (
                f"{field}.{number}",
                tuple(Part(name, part.rows, part.columns, "") for name, part in pairs),
            )
    if config.experts is not None:
        yield "router", (_ROUTER,)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a model of this shape has."""
    experts = config.experts
    size = {
        "hidden": config.hidden_size,
        "inner": config.intermediate_size if experts is None else experts.inner,
        "queries": config.num_heads * config.head_dim,
        "keys": config.num_kv_heads * config.head_dim,
        "experts": 0 if experts is None else experts.num,
    }
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        NORM: (config.hidden_size,),
    }
    if config.norm_bias:
        shapes[NORM_BIAS] = (config.hidden_size,)
    if not config.tied_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    if config.head_bias:
        shapes[HEAD_BIAS] = (config.vocab_size,)
    projections, norms = list(projections_of(config)), norms_of(config)
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        for field in norms:
            width = config.head_dim if field in _OF_HEADS else config.hidden_size
            shapes[f"{at}{NORMS[field]}.weight"] = (width,)
            if config.norm_bias and field not in _OF_HEADS:
                shapes[f"{at}{NORMS[field]}.bias"] = (width,)
        for part in (part for _, parts in projections for part in parts):
            shapes[f"{at}{part.name}.weight"] = (size[part.rows], size[part.columns])
            if part.bias and getattr(config, part.bias):
                shapes[f"{at}{part.name}.bias"] = (size[part.rows],)
    return shapes


def take_layer(
    tensors: MutableMapping[str, Matrix],
    config: ModelConfig,
    layer: int,
    dtype: torch.dtype,
    to_planes: Callable[[Matrix], BitWeight] | None = None,
) -> LayerTensors:
    """Take a layer's weights out of the tensors.

    Parts of a projection lie one below the other, in blocks if all are of one kind, else as values
    of `dtype`; with `to_planes` each is rounded to bit planes before the next is taken.
    """
    at = f"model.layers.{layer}."
    norms = {field: take_norm(tensors, f"{at}{NORMS[field]}") for field in norms_of(config)}
    projections: dict[str, Projection] = {}
    for field, parts in projections_of(config):
        taken = (tensors.pop(f"{at}{part.name}.weight") for part in parts)
        if to_planes is None:
            weight = fused(list(taken), dtype)
        else:
            weight = joined_planes(list(map(to_planes, taken)))  # which keeps no matrix meanwhile
        found = [tensors.pop(f"{at}{part.name}.bias", None) for part in parts]
        biases = [bias for bias in found if isinstance(bias, Tensor)]
        projections[field] = (weight, torch.cat(biases) if biases else None)
    return LayerTensors(norms, projections)


def take_norm(tensors: MutableMapping[str, Matrix], name: str) -> tuple[Tensor, Tensor | None]:
    """Take the weight and the bias, if it has one, of a norm out of the tensors."""
    weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias", None)
    assert isinstance(weight, Tensor), "a vector is never in blocks"
    return weight, bias if isinstance(bias, Tensor) else None
