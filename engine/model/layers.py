"""A decoder's weights, and the launches of its layers one by one: what every pass shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ...kernels.dispatch import Kernels
from ...kernels.weights.blocks import BlockMatrix
from ...kernels.weights.linear import Linear, Matrix
from .config import ModelConfig
from .kv_cache import KVCache
from .tensors import Projection

Check = Callable[[], None]
Attend = Callable[[int, Tensor], Tensor]


@dataclass(slots=True)
class Layer:
    """The weights of one layer: norms (hidden_size,), and its projections."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear

    @classmethod
    def of(
        cls,
        norms: Mapping[str, Tensor],
        projections: Mapping[str, Projection],
        linear: Callable[[Matrix, Tensor | None], Linear],
    ) -> Layer:
        """Make a layer of what `tensors.py` names."""
        made = {name: linear(*each) for name, each in projections.items()}
        return cls(
            norms["attention_norm"],
            norms["mlp_norm"],
            made["qkv"],
            made["output"],
            made["gate_up"],
            made["down"],
        )


@dataclass(frozen=True, slots=True)
class LayerStack:
    """All layers between the embedding and the head.

    Attributes:
        config: the model's shape.
        kernels: the ops of the device.
        embedding: (vocab_size, hidden_size).
        layers: their weights.
        norm: (hidden_size,), before the head.
        head: the projection to logits.
    """

    config: ModelConfig
    kernels: Kernels
    embedding: Matrix
    layers: list[Layer]
    norm: Tensor
    head: Linear

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of weights that are not in blocks."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.device

    def embed(self, token_ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return (n, hidden_size) embeddings of (n,) tokens, by default in the model's dtype."""
        if isinstance(self.embedding, BlockMatrix):
            return self.embedding.rows(token_ids, dtype or self.dtype)
        return functional.embedding(token_ids, self.embedding).to(dtype or self.dtype)

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
        config, kernels, eps = self.config, self.kernels, self.config.norm_eps
        num_projected = config.num_heads + 2 * config.num_kv_heads
        cos, sin = cache.table.at(positions)
        update = None
        for number in layers:
            layer, spared = self.layers[number], skipped[number] if skipped else 0
            if check is not None:
                check()
            if update is None:
                normed = kernels.rms_norm(hidden, layer.attention_norm, eps)
            else:
                hidden, normed = kernels.add_rms_norm(hidden, update, layer.attention_norm, eps)
            qkv = layer.qkv(normed).view(len(slots), num_projected, config.head_dim)
            queries, update = cache.write(number, slots, qkv, cos, sin), None
            if not spared & SKIP_ATTENTION:
                update = layer.output(attend(number, queries).flatten(1))
            if spared & SKIP_MLP:
                hidden, update = hidden if update is None else hidden + update, None
                continue
            if update is None:
                normed = kernels.rms_norm(hidden, layer.mlp_norm, eps)
            else:
                hidden, normed = kernels.add_rms_norm(hidden, update, layer.mlp_norm, eps)
            update = layer.down(kernels.silu_mul(layer.gate_up(normed)))
        return hidden if update is None else hidden + update

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        With bf16 weights, on a CPU and for few rows, only the largest logits of a row are exact to
        float32; the others carry bf16's rounding.
        """
        normed = self.kernels.rms_norm(hidden.to(self.dtype), self.norm, self.config.norm_eps)
        return self.head(normed, torch.float32)
