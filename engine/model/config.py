"""The shape of one decoder, read from GGUF metadata or a `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder of the Llama family looks like; other families differ by these values.

    Attributes:
        family: `model_type` of the config, "llama" for instance.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of one head.
        vocab_size: rows of the embedding.
        max_positions: longest context the model was made for, in tokens.
        norm_eps: epsilon of RMSNorm.
        rope_theta: rotary base.
        rotary_dim: leading dimensions of a head that are rotated; the rest pass through.
        rope_interleaved: rotate pairs (0, 1), (2, 3), ... instead of (0, d/2), (1, d/2 + 1), ...
        rope_scaling: the scaling's parameters as in Hugging Face's `rope_parameters`
            ("rope_type" among them); None or type "default" is unscaled.
        tied_embeddings: the head shares the embedding's weights.
        attention_bias: q, k and v projections have a bias.
        output_bias: the attention's output projection has a bias.
        mlp_bias: MLP projections have a bias.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rotary_dim: int
    rope_interleaved: bool
    rope_scaling: dict[str, Any] | None
    tied_embeddings: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
