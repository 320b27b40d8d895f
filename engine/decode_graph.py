"""One decode step as a CUDA graph that survives a cache whose length changes.

At one row a layer is five products and an attention of a few microseconds each: launched one by
one they cost more than they take. What changes from step to step (token, slot, position, number of
slots) is read on the device from one small tensor; the cache's memory is reserved once and never
moves, so the same graph serves it after any patch.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.dispatch import Kernels
from ..kernels.fusion import CacheRows, Fusion
from ..kernels.linear import Linear
from .kv_cache import KVCache, Slots

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

    from .model import Decoder


def sees_every_slot(cache: KVCache, slots: Slots) -> bool:
    """Return whether these rows are one, at the last position: what a `DecodeGraph` computes."""
    return len(slots) == 1 and bool(cache.positions[slots[0]] >= cache.positions.max())


class DecodeGraph:
    """The decode step of one decoder over one cache.

    On CUDA it is captured at the first step and replayed from then on; elsewhere the same launches
    are made one by one. It belongs to the cache and does not keep it alive.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, kernels: Kernels, pool: Pool | None = None
    ) -> None:
        """Prepare; nothing is compiled or captured yet.

        Args:
            decoder: the model; its projections are dense or packed (`QuantWeight`) matrices.
            cache: made for that decoder.
            kernels: the ops of the decoder's device.
            pool: `torch.cuda.graph_pool_handle()`, for memory shared by graphs that are never
                replayed at the same time; None takes memory of its own.
        """
        self._decoder, self._kernels, self._pool = decoder, kernels, pool
        self._cache: KVCache = weakref.proxy(cache)
        self._is_cuda = decoder.device.type == "cuda"
        # Token, slot, position, number of slots.
        self._inputs = torch.zeros(4, dtype=torch.int64, device=decoder.device)
        self._staged = torch.zeros(4, dtype=torch.int64, pin_memory=self._is_cuda)
        self._copied = torch.cuda.Event() if self._is_cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def step(self, slot: int) -> Tensor:
        """Compute one row of the cache, its keys and values included.

        Args:
            slot: its row; `sees_every_slot` holds for it.

        Returns:
            (vocab_size,) float32 logits after it. On CUDA the next step overwrites them.
        """
        self._stage(slot)
        if not self._is_cuda:
            return self._compute()
        if self._graph is None or self._logits is None:
            self._capture()
        assert self._graph is not None and self._logits is not None
        self._graph.replay()
        return self._logits

    def release(self) -> None:
        """Give the graph's memory back; the next step captures again."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = self._logits = None

    def _stage(self, slot: int) -> None:
        cache = self._cache
        if self._copied is not None:
            self._copied.synchronize()  # the previous copy may not have read it yet
        values = (cache.token_ids[slot], slot, cache.positions[slot], cache.num_rows)
        self._staged.numpy()[:] = values
        self._inputs.copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def _capture(self) -> None:
        device = self._decoder.device
        # Triton compiles and memory is first taken before the capture, which allows neither. The
        # row is computed twice then, to the same keys and values.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._compute()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._logits = self._compute()
        self._graph = graph

    def _compute(self) -> Tensor:
        """Launch the whole step; no value is read on the host."""
        decoder, cache = self._decoder, self._cache
        eps, table = decoder.config.norm_eps, cache.table
        token_id, slot, position = (self._inputs[at : at + 1] for at in range(3))
        num_slots = self._inputs[3:].view(torch.int32)[:1]  # the lower half: little-endian
        attend = self._kernels.attend_slots
        hidden = decoder._embed(token_id)
        for number, layer in enumerate(decoder._layers):
            unrotated, keys, values = cache.storage(number)
            angles = (table.cos, table.sin, table.interleaved)
            rows = CacheRows(unrotated, keys, values, slot, position, *angles)
            queries = self._linear(hidden, layer.qkv, Fusion(layer.attention_norm, eps, cache=rows))
            mixed = attend(queries, keys, values, num_slots).view(1, -1)
            hidden = self._linear(mixed, layer.output, Fusion(residual=hidden))
            gated = self._linear(hidden, layer.gate_up, Fusion(layer.mlp_norm, eps, gated=True))
            hidden = self._linear(gated, layer.down, Fusion(residual=hidden))
        return self._linear(hidden, decoder._head, Fusion(decoder._norm, eps), torch.float32)[0]

    def _linear(
        self, x: Tensor, linear: Linear, fusion: Fusion, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        made: Any = linear  # dense or packed: both have a weight and a bias
        return self._kernels.fused_linear(x, made.weight, made.bias, fusion, out_dtype=out_dtype)
