"""The shape of one decoder, read from GGUF metadata or a `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Block:
    """All that one layer computes, sizes aside: what a backend is asked whether it supports it.

    Attributes:
        norm: "rms" (RMSNorm) or "layer" (LayerNorm).
        norm_bias: the norms have a bias.
        activation: of the MLP, as Hugging Face names it; "silu" for instance.
        is_gated: the MLP multiplies the activated gate with a second projection; else it is plain.
        is_parallel: attention and MLP read the same norm and are added together; else the MLP
            reads what attention has added to the residual stream.
        qk_norm: queries and keys are normed before they are rotated.
        attention_bias: as in `ModelConfig`.
        output_bias: as in `ModelConfig`.
        mlp_bias: as in `ModelConfig`.
        rope_theta: rotary base of this layer.
        rotary_dim: as in `ModelConfig`.
        rope_interleaved: as in `ModelConfig`.
        rope_scaling: as in `ModelConfig`.
        sliding_window: tokens that a row sees at most, its own among them; None: all before it.
    """

    norm: str
    norm_bias: bool
    activation: str
    is_gated: bool
    is_parallel: bool
    qk_norm: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope_theta: float
    rotary_dim: int
    rope_interleaved: bool
    rope_scaling: dict[str, Any] | None
    sliding_window: int | None

    def beyond_llama(self) -> tuple[str, ...]:
        """Return, in words, what this layer has that a layer of the Llama family has not."""
        features = {
            "LayerNorm": self.norm == "layer",
            f"the norm {self.norm!r}": self.norm not in ("rms", "layer"),
            "biases of norms": self.norm_bias,
            f"the activation {self.activation!r}": self.activation not in ("silu", "swish"),
            "an MLP without a gate": not self.is_gated,
            "attention and MLP side by side": self.is_parallel,
            "normed queries and keys": self.qk_norm,
            f"sliding-window attention over {self.sliding_window} tokens": (
                self.sliding_window is not None
            ),
        }
        return tuple(words for words, is_there in features.items() if is_there)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder looks like: its sizes, and what its layers compute.

    The fields from `norm` on say how a layer differs from the Llama family's, whose layer is what
    they are when nothing is said of them. The readers of model files say every one of them.

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
        rope_interleaved: rotate pairs (0, 1), (2, 3), ... instead of (0, d/2), (1, d/2 + 1), ...;
            Cohere's and GLM's configs mean that. GGUF files of the Llama family are stored so, but
            are put in order when they are read.
        rope_scaling: the scaling's parameters as in Hugging Face's `rope_parameters`
            ("rope_type" among them); None or type "default" is unscaled.
        tied_embeddings: the head shares the embedding's weights.
        attention_bias: q, k and v projections have a bias.
        output_bias: the attention's output projection has a bias.
        mlp_bias: MLP projections have a bias.
        norm: as in `Block`; so are the next five.
        norm_bias: as in `Block`.
        activation: as in `Block`.
        is_gated: as in `Block`.
        is_parallel: as in `Block`.
        qk_norm: as in `Block`.
        sliding_windows: of the layers, as in `Block`, over and over again; empty: none has one.
        rope_thetas: rotary bases of the layers, likewise; empty: `rope_theta` in all of them.
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
    norm: str = "rms"
    norm_bias: bool = False
    activation: str = "silu"
    is_gated: bool = True
    is_parallel: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    rope_thetas: tuple[float, ...] = ()

    def block(self, layer: int) -> Block:
        """Return what a layer computes."""
        thetas, windows = self.rope_thetas, self.sliding_windows
        return Block(
            norm=self.norm,
            norm_bias=self.norm_bias,
            activation=self.activation,
            is_gated=self.is_gated,
            is_parallel=self.is_parallel,
            qk_norm=self.qk_norm,
            attention_bias=self.attention_bias,
            output_bias=self.output_bias,
            mlp_bias=self.mlp_bias,
            rope_theta=thetas[layer % len(thetas)] if thetas else self.rope_theta,
            rotary_dim=self.rotary_dim,
            rope_interleaved=self.rope_interleaved,
            rope_scaling=self.rope_scaling,
            sliding_window=windows[layer % len(windows)] if windows else None,
        )

    def blocks(self) -> list[Block]:
        """Return the different kinds of layer that the model has, in order of appearance."""
        found: list[Block] = []
        num_patterns = max(1, len(self.rope_thetas)) * max(1, len(self.sliding_windows))
        for layer in range(min(self.num_layers, num_patterns)):
            block = self.block(layer)
            if block not in found:
                found.append(block)
        return found
