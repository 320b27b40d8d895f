"""A decoder's weights, and the launches of its layers one by one: what every pass shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ...kernels.dispatch import Kernels
from ...kernels.weights.linear import Linear, Matrix
from ...kernels.weights.packed import BitWeight, RowSource
from .attention import capped
from .config import ModelConfig
from .kv_cache import KVCache
from .mlp import Mlp, make_mlp
from .tensors import LayerTensors, Projection

Check = Callable[[], None]
Attend = Callable[[int, Tensor], Tensor]


def go_on() -> None:
    """Never cancel: the `Check` of who has nobody else to serve."""


@dataclass(frozen=True, slots=True)
class Norm:
    """What rows are normed by.

    Attributes:
        kernels: the ops of the device.
        weight: (width,).
        bias: (width,), or None.
        eps: added to the mean square, or to the variance.
        is_layer: LayerNorm, arXiv 1607.06450; else RMSNorm.
    """

    kernels: Kernels
    weight: Tensor
    bias: Tensor | None
    eps: float
    is_layer: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., width) rows, normed; computed in float32 and rounded once."""
        if not self.is_layer:
            return self.kernels.rms_norm(x, self.weight, self.eps)
        bias = None if self.bias is None else self.bias.float()
        shape = (x.shape[-1],)
        return functional.layer_norm(x.float(), shape, self.weight.float(), bias, self.eps).to(
            x.dtype
        )

    def after(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """Add an update to the residual stream; return the sum, and the sum normed."""
        if not self.is_layer:
            return self.kernels.add_rms_norm(hidden, update, self.weight, self.eps)
        total = hidden + update
        return total, self(total)


@dataclass(slots=True)
class Layer:
    """The weights of one layer.

    Attributes:
        attention_norm: before attention.
        mlp_norm: before the MLP; None where that reads what attention reads.
        qkv: queries, keys and values, one below the other.
        output: the attention's output projection.
        mlp: what comes after.
        qk_norm: ((num_heads + num_kv_heads), head_dim) that queries and keys are normed by, or
            None.
        attention_post_norm: of what attention gives, or None.
        mlp_post_norm: of what the MLP gives, or None.
    """

    attention_norm: Norm
    mlp_norm: Norm | None
    qkv: Linear
    output: Linear
    mlp: Mlp
    qk_norm: Tensor | None
    attention_post_norm: Norm | None
    mlp_post_norm: Norm | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        kernels: Kernels,
        tensors: LayerTensors,
        linear: Callable[[Matrix | BitWeight, Tensor | None], Linear],
    ) -> Layer:
        """Make a layer of what `tensors.py` names."""

        def norm(name: str) -> Norm | None:
            if name not in tensors.norms:
                return None
            return norm_of(config, kernels, *tensors.norms[name])

        def made(projection: Projection) -> Linear:
            return linear(*projection)

        attention_norm = norm("attention_norm")
        assert attention_norm is not None, "every layer has one"
        qk_norm = None
        if config.qk_norm:
            query, key = (tensors.norms[name][0] for name in ("query_norm", "key_norm"))
            counts = (config.num_heads, config.num_kv_heads)
            qk_norm = torch.cat(
                [part.expand(n, -1) for part, n in zip((query, key), counts, strict=True)]
            )
        return cls(
            attention_norm,
            norm("mlp_norm"),
            made(tensors.projections["qkv"]),
            made(tensors.projections["output"]),
            make_mlp(config, kernels, tensors, made),
            qk_norm,
            norm("attention_post_norm"),
            norm("mlp_post_norm"),
        )


def norm_of(config: ModelConfig, kernels: Kernels, weight: Tensor, bias: Tensor | None) -> Norm:
    """Return a norm of the kind that a model has."""
    return Norm(kernels, weight, bias, config.norm_eps, config.norm == "layer")


@dataclass(frozen=True, slots=True)
class LayerStack:
    """All layers between the embedding and the head.

    Attributes:
        config: the model's shape.
        kernels: the ops of the device.
        embedding: (vocab_size, hidden_size).
        layers: their weights.
        norm: before the head.
        head: the projection to logits.
        head_bias: (vocab_size,), or None.
    """

    config: ModelConfig
    kernels: Kernels
    embedding: RowSource
    layers: list[Layer]
    norm: Norm
    head: Linear
    head_bias: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of weights that are not in blocks."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    def embed(self, token_ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return (n, hidden_size) embeddings of (n,) tokens, by default in the model's dtype."""
        if isinstance(self.embedding, Tensor):
            found = functional.embedding(token_ids, self.embedding).to(dtype or self.dtype)
        else:
            found = self.embedding.at(token_ids).values(dtype or self.dtype)
        multiplier = self.config.embedding_multiplier
        return found if multiplier == 1 else found * multiplier

    def run(
        self,
        cache: KVCache,
        hidden: Tensor,
        slots: Tensor,
        positions: Tensor,
        attend: Attend,
        layers: range,
        check: Check | None = None,
        skipped: bytes | None = None,
    ) -> Tensor:
        """Launch layers, one after another, over rows that are described on the device.

        Args:
            cache: its keys and values are written at the rows.
            hidden: (n, hidden_size): embeddings, or what the layer before the first one gave.
            slots: (n,) int64; where one occurs twice, its tokens and positions are the same.
            positions: (n,) int64.
            attend: takes a layer's number and its (n, num_heads, head_dim) rotated queries; returns
                what the rows see, like the queries.
            layers: numbers of the layers, in a row.
            check: called before every layer.
            skipped: as for `CpuStep.forward`.

        Returns:
            (n, hidden_size).
        """
        config = self.config
        num_projected = config.num_heads + 2 * config.num_kv_heads
        angles = cache.tables.at(positions)
        update = None
        for number in layers:
            layer, spared = self.layers[number], skipped[number] if skipped else 0
            if check is not None:
                check()
            if update is None:
                normed = layer.attention_norm(hidden)
            else:
                hidden, normed = layer.attention_norm.after(hidden, update)
            qkv = layer.qkv(normed).view(len(slots), num_projected, config.head_dim)
            if layer.qk_norm is not None:
                norm_heads(qkv, layer.qk_norm, config.norm_eps)
            cos, sin = angles[cache.tables.number[number]]
            queries = cache.write(number, slots, qkv, cos, sin)
            attended = None
            if not spared & SKIP_ATTENTION:
                attended = layer.output(attend(number, queries).flatten(1))
                if layer.attention_post_norm is not None:
                    attended = layer.attention_post_norm(attended)
            if spared & SKIP_MLP:
                update = attended
                continue
            if layer.mlp_norm is None:
                made = layer.mlp(normed)
                update = made if attended is None else attended + made
            else:
                if attended is None:
                    normed = layer.mlp_norm(hidden)
                else:
                    hidden, normed = layer.mlp_norm.after(hidden, attended)
                update = layer.mlp(normed)
            if layer.mlp_post_norm is not None:
                update = layer.mlp_post_norm(update)
        return hidden if update is None else hidden + update

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        With bf16 weights, on a CPU and for few rows, only the largest logits of a row are exact to
        float32; the others carry bf16's rounding.
        """
        logits = self.head(self.norm(hidden.to(self.dtype)), torch.float32)
        if self.head_bias is not None:
            logits += self.head_bias
        cap = self.config.logit_cap
        return logits if cap is None else capped(logits, cap)


def norm_heads(qkv: Tensor, gain: Tensor, eps: float) -> None:
    """Norm queries and keys in place, each head by itself, by RMSNorm.

    Args:
        qkv: (n, num_heads + 2 * num_kv_heads, head_dim).
        gain: (num_heads + num_kv_heads, head_dim).
        eps: added to the mean square.

    Source: Qwen3, arXiv 2505.09388, section 2; QK-norm, arXiv 2010.04245.
    """
    part = qkv[:, : len(gain)]
    values = part.float()
    scale = (values.square().mean(-1, keepdim=True) + eps).rsqrt()
    part.copy_(values * scale * gain.float())
