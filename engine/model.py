"""One decoder for every supported family, driven by its configuration, over a KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .attention import attend, causal_bias
from .kv_cache import KVCache, Slots
from .model_config import ModelConfig

Check = Callable[[], None]

# With bf16 weights the largest logits of a row are recomputed in float32, so that greedy decoding
# does not hang on ties of a format with 8 bits of precision.
_NUM_EXACT_LOGITS = 64
# Up to this many rows that is cheaper than the whole head in float32.
_FEW_ROWS = 4


@dataclass(slots=True)
class AttentionRecord:
    """Attention weights that a forward pass is asked to leave behind.

    Attributes:
        layers: the layers wanted.
        rows: which rows of the forward are wanted, as indices into its `slots`.
        weights: filled in: layer to (len(rows), num_rows) float32, mean over heads, one column per
            slot of the cache.
    """

    layers: frozenset[int]
    rows: list[int]
    weights: dict[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Layer:
    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Decoder:
    """A stack of decoder layers: RMSNorm, grouped-query attention with rotary keys, gated MLP.

    Attributes:
        config: its shape.
        dtype: of weights and activations.
        device: where it lives.
    """

    def __init__(self, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
        """Take over the weights of a model.

        Args:
            config: the model's shape.
            tensors: Hugging Face names to weights, all of one dtype; emptied as they are used.
        """
        self.config = config
        self._embedding = tensors.pop("model.embed_tokens.weight")
        self._norm = tensors.pop("model.norm.weight")
        head = tensors.pop("lm_head.weight", None)
        self._head = self._embedding if head is None else head
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._layers = [_take_layer(tensors, index) for index in range(config.num_layers)]

    @torch.inference_mode()
    def forward(
        self, cache: KVCache, slots: Slots, check: Check, record: AttentionRecord | None = None
    ) -> Tensor:
        """Compute any set of rows over the cache, in one pass.

        Every row sees all rows of the cache at its position and before, those of this pass
        included. Their keys and values are written as the pass goes.

        Args:
            cache: holds the rows' tokens and positions.
            slots: (n,) the rows to compute.
            check: called between layers; what it raises leaves the rows half written.
            record: asks for attention weights.

        Returns:
            (n, hidden_size): the last layer's output, before the final norm.
        """
        config, eps = self.config, self.config.norm_eps
        num_asked = len(slots)
        slots = _padded(slots)
        index = torch.from_numpy(slots).to(self.device)
        positions = torch.from_numpy(cache.positions.copy()).to(self.device)
        row_positions = positions[index]
        bias = causal_bias(row_positions, positions, self.dtype)
        cos, sin = cache.table.at(row_positions)
        num_projected = config.num_heads + 2 * config.num_kv_heads
        token_ids = torch.from_numpy(cache.token_ids[slots]).to(self.device)
        hidden = functional.embedding(token_ids, self._embedding)
        width = (config.hidden_size,)
        for number, layer in enumerate(self._layers):
            check()
            normed = functional.rms_norm(hidden, width, layer.attention_norm, eps)
            qkv = functional.linear(normed, layer.qkv, layer.qkv_bias)
            qkv = qkv.view(len(slots), num_projected, config.head_dim)
            queries = cache.write(number, index, qkv, cos, sin)
            mixed = self._attend(cache, number, queries, bias, record)
            hidden = hidden + functional.linear(mixed, layer.output, layer.output_bias)
            normed = functional.rms_norm(hidden, width, layer.mlp_norm, eps)
            gate, up = functional.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            hidden = hidden + functional.linear(
                functional.silu(gate) * up, layer.down, layer.down_bias
            )
        return hidden[:num_asked]

    def _attend(
        self,
        cache: KVCache,
        number: int,
        queries: Tensor,
        bias: Tensor | None,
        record: AttentionRecord | None,
    ) -> Tensor:
        keys, values = cache.layer(number)
        weights = None
        if record is not None and number in record.layers:
            weights = torch.empty(len(queries), keys.shape[1], device=self.device)
        mixed = attend(queries, keys, values, bias, weights)
        if record is not None and weights is not None:
            record.weights[number] = weights[record.rows]
        return mixed.reshape(len(queries), -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        With bf16 weights and few rows only the largest logits of a row are exact to float32; the
        others carry bf16's rounding.
        """
        normed = functional.rms_norm(
            hidden, (self.config.hidden_size,), self._norm, self.config.norm_eps
        )
        if self.dtype == torch.float32 or len(hidden) > _FEW_ROWS:
            return functional.linear(normed.float(), self._head.float())
        rough = functional.linear(normed, self._head).float()
        top = rough.topk(min(_NUM_EXACT_LOGITS, rough.shape[1])).indices
        exact = torch.einsum("nkd,nd->nk", self._head[top].float(), normed.float())
        return rough.scatter(1, top, exact)


def _padded(slots: Slots) -> Slots:
    """Repeat the last row up to one of about twenty sizes.

    oneDNN compiles and keeps code for every number of rows: 8 to 20 ms the first time, and half a
    gigabyte after some hundred sizes. A repeated row writes the same keys and values again.
    """
    count = len(slots)
    step = 1 if count <= 8 else 8 if count <= 64 else 32
    return np.pad(slots, (0, -count % step), mode="edge")


def _take_layer(tensors: dict[str, Tensor], index: int) -> _Layer:
    prefix = f"model.layers.{index}."

    def take(name: str, kind: str = "weight") -> Tensor | None:
        return tensors.pop(f"{prefix}{name}.{kind}", None)

    def fuse(kind: str, *names: str) -> Tensor | None:
        parts = [take(name, kind) for name in names]
        return (
            torch.cat([part for part in parts if part is not None]) if None not in parts else None
        )

    def need(tensor: Tensor | None) -> Tensor:
        assert tensor is not None, f"layer {index} passed the loader's check but lacks a tensor"
        return tensor

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj")
    return _Layer(
        attention_norm=need(take("input_layernorm")),
        qkv=need(fuse("weight", *attention)),
        qkv_bias=fuse("bias", *attention),
        output=need(take("self_attn.o_proj")),
        output_bias=take("self_attn.o_proj", "bias"),
        mlp_norm=need(take("post_attention_layernorm")),
        gate_up=need(fuse("weight", *mlp)),
        gate_up_bias=fuse("bias", *mlp),
        down=need(take("mlp.down_proj")),
        down_bias=take("mlp.down_proj", "bias"),
    )
