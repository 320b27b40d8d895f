"""The shape of one decoder, read from GGUF metadata or a `config.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

# Activations by Hugging Face's names, and which of them are one function.
SILU, GELU, GELU_TANH = "silu", "gelu", "gelu_pytorch_tanh"
ALIASES = {"swish": SILU, "gelu_new": GELU_TANH, "gelu_fast": GELU_TANH}


@dataclass(frozen=True, slots=True)
class Rope:
    """How the keys of a layer are rotated.

    Attributes:
        theta: rotary base.
        rotary_dim: leading dimensions of a head that are rotated; the rest pass through.
        scaling: parameters as in Hugging Face's `rope_parameters` ("rope_type" among them); None
            or type "default" is unscaled.
    """

    theta: float
    rotary_dim: int
    scaling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """An MLP of which every row takes a few of many.

    Attributes:
        num: how many there are.
        num_used: how many a row takes.
        inner: width of one.
        normalises: the shares of those that a row takes add up to 1.
    """

    num: int
    num_used: int
    inner: int
    normalises: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """How the layers of a family differ from the Llama family's, which is what nothing said means.

    Attributes:
        norm: "rms" (RMSNorm) or "layer" (LayerNorm).
        norm_bias: the norms have a bias.
        activation: of the MLP, as Hugging Face names it; "silu" for instance.
        is_gated: the MLP multiplies the activated gate with a second projection; else it is plain.
        is_parallel: attention and MLP read the same norm and are added together; else the MLP
            reads what attention has added to the residual stream.
        qk_norm: queries and keys are normed, head by head, before they are rotated.
        post_norms: what attention and MLP give is normed before it is added.
    """

    norm: str = "rms"
    norm_bias: bool = False
    activation: str = SILU
    is_gated: bool = True
    is_parallel: bool = False
    qk_norm: bool = False
    post_norms: bool = False


@dataclass(frozen=True, slots=True)
class Block(LayerKind):
    """All that one layer computes, sizes aside: what a backend is asked whether it supports it.

    Attributes:
        experts: the MLP is one of several.
        score_cap: scores of attention are kept below it by a tanh; None: they are not.
        attention_bias: as in `ModelConfig`.
        output_bias: as in `ModelConfig`.
        mlp_bias: as in `ModelConfig`.
        rope: how keys are rotated; None: they are not.
        rope_interleaved: as in `ModelConfig`.
        sliding_window: tokens that a row sees at most, its own among them; None: all before it.
    """

    experts: Experts | None
    score_cap: float | None
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: Rope | None
    rope_interleaved: bool
    sliding_window: int | None

    def beyond_llama(self) -> dict[str, str]:
        """Return what this layer has that a layer of the Llama family has not: key to words.

        Rotation is not spoken of: every pass rotates a layer by its own table.
        """
        features = {
            "norm": ("LayerNorm", self.norm == "layer"),
            "norm_bias": ("biases of norms", self.norm_bias),
            "activation": (f"the activation {self.activation!r}", self.activation == GELU_TANH),
            "exact_gelu": (f"the activation {self.activation!r}", self.activation == GELU),
            "plain_mlp": ("an MLP without a gate", not self.is_gated),
            "parallel": ("attention and MLP side by side", self.is_parallel),
            "qk_norm": ("normed queries and keys", self.qk_norm),
            "post_norms": ("norms after attention and MLP", self.post_norms),
            "experts": ("experts", self.experts is not None),
            "cap": ("capped scores", self.score_cap is not None),
            "window": (
                f"sliding-window attention over {self.sliding_window} tokens",
                self.sliding_window is not None,
            ),
        }
        return {key: words for key, (words, is_there) in features.items() if is_there}

    def lacks(self, computed: frozenset[str]) -> tuple[str, ...]:
        """Return, in words, what a pass lacks that computes so much beyond Llama, by keys."""
        beyond = self.beyond_llama()
        return (*self.unknown(), *(beyond[key] for key in beyond if key not in computed))

    def unknown(self) -> tuple[str, ...]:
        """Return, in words, what no pass computes."""
        features = {
            f"the norm {self.norm!r}": self.norm not in ("rms", "layer"),
            "biases of norms": self.norm == "rms" and self.norm_bias,
            f"the activation {self.activation!r}": self.activation not in (SILU, GELU, GELU_TANH),
        }
        return tuple(words for words, is_there in features.items() if is_there)


@dataclass(frozen=True, slots=True)
class ModelConfig(LayerKind):
    """What a decoder looks like: its sizes, and what its layers compute.

    The readers of model files say every field.

    Attributes:
        family: `model_type` of the config, or the architecture in a GGUF file; "llama" for
            instance.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of one head.
        vocab_size: rows of the embedding.
        max_positions: longest context the model was made for, in tokens.
        norm_eps: epsilon of the norms.
        rope_theta: rotary base.
        rotary_dim: leading dimensions of a head that are rotated; the rest pass through.
        rope_interleaved: rotate pairs (0, 1), (2, 3), ... instead of (0, d/2), (1, d/2 + 1), ...;
            Cohere's and GLM's configs mean that. GGUF files of the Llama family are stored so, but
            are put in order when they are read.
        rope_scaling: as in `Rope`.
        tied_embeddings: the head shares the embedding's weights.
        attention_bias: q, k and v projections have a bias.
        output_bias: the attention's output projection has a bias.
        mlp_bias: MLP projections have a bias.
        experts: as in `Block`.
        score_cap: as in `Block`.
        sliding_windows: of the layers, as in `Block`, over and over again; empty: none has one.
        ropes: how layers are rotated, likewise, None of them not at all; empty: all of them as
            `rope_theta`, `rotary_dim` and `rope_scaling` say.
        head_bias: the head has a bias.
        embedding_multiplier: what embeddings are multiplied with.
        logit_cap: logits are kept below it by a tanh; None: they are not.
        attention_multiplier: what scores are multiplied with; None: `head_dim ** -0.5`. This and
            the next two are in the weights once those are read (`files/stored.py`): no pass knows
            them.
        residual_multiplier: what attention and MLP give is multiplied with before it is added.
        logit_multiplier: what logits are multiplied with.
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
    experts: Experts | None = None
    score_cap: float | None = None
    sliding_windows: tuple[int | None, ...] = ()
    ropes: tuple[Rope | None, ...] = ()
    head_bias: bool = False
    embedding_multiplier: float = 1.0
    logit_cap: float | None = None
    attention_multiplier: float | None = None
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0

    def rope(self, layer: int) -> Rope | None:
        """Return how a layer's keys are rotated; None: they are not."""
        if self.ropes:
            return self.ropes[layer % len(self.ropes)]
        return Rope(self.rope_theta, self.rotary_dim, self.rope_scaling)

    def block(self, layer: int) -> Block:
        """Return what a layer computes."""
        windows = self.sliding_windows
        return Block(
            norm=self.norm,
            norm_bias=self.norm_bias,
            activation=ALIASES.get(self.activation, self.activation),
            is_gated=self.is_gated,
            is_parallel=self.is_parallel,
            qk_norm=self.qk_norm,
            post_norms=self.post_norms,
            experts=self.experts,
            score_cap=self.score_cap,
            attention_bias=self.attention_bias,
            output_bias=self.output_bias,
            mlp_bias=self.mlp_bias,
            rope=self.rope(layer),
            rope_interleaved=self.rope_interleaved,
            sliding_window=windows[layer % len(windows)] if windows else None,
        )

    def blocks(self) -> list[Block]:
        """Return the different kinds of layer that the model has, in order of appearance."""
        found: list[Block] = []
        num_patterns = math.lcm(max(1, len(self.ropes)), max(1, len(self.sliding_windows)))
        for layer in range(min(self.num_layers, num_patterns)):
            block = self.block(layer)
            if block not in found:
                found.append(block)
        return found

    def within(self, num_positions: int) -> ModelConfig:
        """Return this model for so many positions: windows that none of them leaves are none."""
        windows = tuple(
            None if window is None or window >= num_positions else window
            for window in self.sliding_windows
        )
        return replace(self, sliding_windows=windows if any(windows) else ())
