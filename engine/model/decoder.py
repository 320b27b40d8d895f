"""One decoder for every supported family, driven by its configuration, over a KV cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels import dispatch
from ...kernels.cpu.step import CpuStep, StepLayer
from ...kernels.weights.blocks import BlockMatrix
from ...kernels.weights.linear import Linear, Matrix, fused
from .attention import Sight, attend, attend_on_gpu, causal_bias, look
from .captured_pass import PATCH_ROWS, DecodeGraph, PatchGraph, sees_every_slot
from .config import ModelConfig
from .kv_cache import KVCache, Slots

Check = Callable[[], None]
Attend = Callable[[int, Tensor], Tensor]

# Up to this many rows a kernel of our own attends on a GPU: it compares positions by itself.
_FEW_ROWS = PATCH_ROWS[-1]
# On the CPU up to so many rows go through all layers in one call, and so many to logits.
_STEP_ROWS, _STEP_LOGITS = 16, 64


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
class Layer:
    """The weights of one layer: norms (hidden_size,), and its projections."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear


# A layer's two norms; and matrix and bias of its projections, in the order of `Layer`.
_Source = tuple[list[Tensor], list[tuple[Matrix, Tensor | None]]]


class Decoder:
    """A stack of decoder layers: RMSNorm, grouped-query attention with rotary keys, gated MLP.

    Attributes:
        config: its shape.
        dtype: of activations, and of weights that are not in blocks.
        device: where it lives.
        layers: its layers' weights.
        norm: (hidden_size,), before the head.
        head: the projection to logits.
    """

    def __init__(self, config: ModelConfig, tensors: dict[str, Matrix]) -> None:
        """Take over the weights of a model.

        Args:
            config: the model's shape.
            tensors: Hugging Face names to weights: tensors of one dtype, or matrices in blocks;
                emptied as they are used.
        """
        self.config = config
        norm = tensors.pop("model.norm.weight")
        assert isinstance(norm, Tensor), "a vector is never in blocks"
        self.norm, self.dtype, self.device = norm, norm.dtype, norm.device
        self._kernels = kernels = dispatch.choose(self.device)
        is_half = self.dtype in (torch.bfloat16, torch.float16)  # what the kernels multiply
        self._is_triton = kernels.backend == "triton" and self.device.type == "cuda" and is_half
        self._embedding = tensors.pop("model.embed_tokens.weight")
        head = tensors.pop("lm_head.weight", self._embedding)
        self.head = kernels.head(head, self.dtype)
        sources = [_take_layer(tensors, index, self.dtype) for index in range(config.num_layers)]
        self.layers = [_layer(*source, kernels, self.dtype) for source in sources]
        self._whole_step: CpuStep | None = None
        if kernels.whole_step is not None:
            # A shape that the C library cannot read is served by torch.
            with contextlib.suppress(ValueError):
                self._whole_step = kernels.whole_step(
                    [_step_layer(*source) for source in sources],
                    self.norm,
                    head,
                    num_heads=config.num_heads,
                    num_kv_heads=config.num_kv_heads,
                    eps=config.norm_eps,
                    interleaved=config.rope_interleaved,
                )

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
            (n, hidden_size): the last layer's output, before the final norm; in float32 where a
            few rows went through all layers in one call.
        """
        num_asked = len(slots)
        if self._is_triton and num_asked <= _FEW_ROWS and record is None:
            check()
            return self._patch_graph(cache, num_asked).forward(slots)
        if self._whole_step is not None and num_asked <= _STEP_ROWS:
            check()
            return self._step(self._whole_step, cache, slots, record)
        if self.device.type == "cpu":
            slots = _padded(slots)
        few = _FEW_ROWS if self._is_triton else 0
        sight = look(slots, cache.positions, self.dtype, self.device, few_rows=few)
        index = torch.from_numpy(slots).to(self.device, non_blocking=True)
        token_ids = torch.from_numpy(cache.token_ids[slots])
        token_ids = token_ids.to(self.device, non_blocking=True)

        def attend(number: int, queries: Tensor) -> Tensor:
            return self._attend(cache, number, queries, sight, record)

        hidden = self.run_layers(cache, token_ids, index, sight.row_positions, attend, check)
        return hidden[:num_asked]

    def warm_up(self, capacity: int) -> None:
        """Run every kind of pass once over a cache of that capacity, so that all is compiled.

        Otherwise the first keystrokes would wait for it. Triton keeps what it compiled on the disk
        for the next start.
        """
        cache = KVCache(self.config, capacity, self.dtype, self.device)
        rows = min(capacity, _FEW_ROWS + 1)
        slots = cache.append(np.zeros(rows, dtype=np.int64), np.arange(rows))
        for count in (rows, *PATCH_ROWS):
            self.forward(cache, slots[:count], lambda: None)
        self.last_logits(cache, slots[-1:], lambda: None)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run_layers(
        self,
        cache: KVCache,
        token_ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        attend: Attend,
        check: Check | None = None,
    ) -> Tensor:
        """Launch all layers over rows that are described on the device; the heart of `forward`.

        Args:
            cache: its keys and values are written at the rows.
            token_ids: (n,) int64.
            slots: (n,) int64; where one occurs twice, its tokens and positions are the same.
            positions: (n,) int64.
            attend: takes a layer's number and its (n, num_heads, head_dim) rotated queries; returns
                what the rows see, like the queries.
            check: called between layers.

        Returns:
            (n, hidden_size).
        """
        config, kernels, eps = self.config, self._kernels, self.config.norm_eps
        num_projected = config.num_heads + 2 * config.num_kv_heads
        cos, sin = cache.table.at(positions)
        hidden, update = self.embed(token_ids), None
        for number, layer in enumerate(self.layers):
            if check is not None:
                check()
            if update is None:
                normed = kernels.rms_norm(hidden, layer.attention_norm, eps)
            else:
                hidden, normed = kernels.add_rms_norm(hidden, update, layer.attention_norm, eps)
            qkv = layer.qkv(normed).view(len(slots), num_projected, config.head_dim)
            mixed = attend(number, cache.write(number, slots, qkv, cos, sin)).flatten(1)
            hidden, normed = kernels.add_rms_norm(hidden, layer.output(mixed), layer.mlp_norm, eps)
            update = layer.down(kernels.silu_mul(layer.gate_up(normed)))
        return hidden if update is None else hidden + update

    def embed(self, token_ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return (n, hidden_size) embeddings of (n,) tokens, by default in the model's dtype."""
        if isinstance(self._embedding, BlockMatrix):
            return self._embedding.rows(token_ids, dtype or self.dtype)
        return functional.embedding(token_ids, self._embedding).to(dtype or self.dtype)

    def _step(
        self, step: CpuStep, cache: KVCache, slots: Slots, record: AttentionRecord | None
    ) -> Tensor:
        index, positions = torch.from_numpy(slots), torch.from_numpy(cache.positions)
        token_ids = torch.from_numpy(cache.token_ids[slots])
        row_positions = positions[index]
        weights = {
            layer: torch.empty(len(slots), cache.num_rows)
            for layer in (record.layers if record is not None else ())
        }
        hidden = step.forward(
            self.embed(token_ids, torch.float32),
            *cache.storage,
            index,
            cache.num_rows,
            row_positions,
            positions,
            *cache.table.at(row_positions),
            weights,
        )
        if record is not None:
            record.weights |= {layer: each[record.rows] for layer, each in weights.items()}
        return hidden

    def _attend(
        self,
        cache: KVCache,
        number: int,
        queries: Tensor,
        sight: Sight,
        record: AttentionRecord | None,
    ) -> Tensor:
        weights = None
        if record is not None and number in record.layers:
            weights = torch.empty(len(queries), cache.num_rows, device=self.device)
        if self._is_triton and len(queries) <= _FEW_ROWS:
            _, keys, values = (part[number] for part in cache.storage)
            at = (cache.num_rows, sight.row_positions, sight.slot_positions)
            mixed = self._kernels.attend_slots(queries, keys, values, *at, weights=weights)
        elif self.device.type == "cuda" and weights is None:
            mixed = attend_on_gpu(queries, *cache.layer(number), sight)
        else:
            bias = sight.bias
            if sight.num_ordered:
                bias = causal_bias(sight.row_positions, sight.slot_positions, self.dtype)
            mixed = attend(queries, *cache.layer(number), bias, weights)
        if record is not None and weights is not None:
            record.weights[number] = weights[record.rows]
        return mixed

    @torch.inference_mode()
    def last_logits(self, cache: KVCache, slots: Slots, check: Check) -> Tensor:
        """Compute rows as `forward` does; return the (vocab_size,) logits after the last of them.

        On a GPU one row that sees all others, a decode step, is a captured graph.
        """
        if self._is_triton and sees_every_slot(cache, slots):
            check()
            graph = cache.graphs.get(1)
            if not isinstance(graph, DecodeGraph):
                graph = cache.graphs[1] = DecodeGraph(self, cache, self._kernels)
            return graph.step(int(slots[0])).clone()
        return self.logits(self.forward(cache, slots, check)[-1:])[0]

    def _patch_graph(self, cache: KVCache, num_rows: int) -> PatchGraph:
        size = next(size for size in PATCH_ROWS if num_rows <= size)
        graph = cache.graphs.get(size)
        if not isinstance(graph, PatchGraph):
            graph = PatchGraph(self, cache, self._kernels, size)
            cache.graphs[size] = graph
        return graph

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        With bf16 weights, on a CPU without the C library and for few rows, only the largest logits
        of a row are exact to float32; the others carry bf16's rounding.
        """
        if self._whole_step is not None and len(hidden) <= _STEP_LOGITS:
            return self._whole_step.logits(hidden)
        normed = self._kernels.rms_norm(hidden.to(self.dtype), self.norm, self.config.norm_eps)
        return self.head(normed, torch.float32)


def _padded(slots: Slots) -> Slots:
    """Repeat the last row up to one of about twenty sizes.

    oneDNN compiles and keeps code for every number of rows: 8 to 20 ms the first time, and half a
    gigabyte after some hundred sizes. A repeated row writes the same keys and values again.
    """
    count = len(slots)
    step = 1 if count <= 8 else 8 if count <= 64 else 32
    return np.pad(slots, (0, -count % step), mode="edge")


def _take_layer(tensors: dict[str, Matrix], index: int, dtype: torch.dtype) -> _Source:
    prefix = f"model.layers.{index}."

    def norm(name: str) -> Tensor:
        weight = tensors.pop(f"{prefix}{name}.weight")
        assert isinstance(weight, Tensor), "a vector is never in blocks"
        return weight

    def projection(*names: str) -> tuple[Matrix, Tensor | None]:
        weight = fused([tensors.pop(f"{prefix}{name}.weight") for name in names], dtype)
        found = [tensors.pop(f"{prefix}{name}.bias", None) for name in names]
        biases = [part for part in found if isinstance(part, Tensor)]
        return weight, torch.cat(biases) if biases else None

    return [norm("input_layernorm"), norm("post_attention_layernorm")], [
        projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        projection("self_attn.o_proj"),
        projection("mlp.gate_proj", "mlp.up_proj"),
        projection("mlp.down_proj"),
    ]


def _layer(
    norms: list[Tensor],
    projections: list[tuple[Matrix, Tensor | None]],
    kernels: dispatch.Kernels,
    dtype: torch.dtype,
) -> Layer:
    qkv, output, gate_up, down = (
        kernels.linear(matrix, bias, dtype) for matrix, bias in projections
    )
    return Layer(norms[0], norms[1], qkv, output, gate_up, down)


def _step_layer(norms: list[Tensor], projections: list[tuple[Matrix, Tensor | None]]) -> StepLayer:
    qkv, output, gate_up, down = projections
    return StepLayer(norms[0], [qkv], output, norms[1], [gate_up], down)
