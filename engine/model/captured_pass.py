"""Decode steps and small patches as CUDA graphs that survive a cache whose length changes.

Launched one by one from Python, the kernels of a pass over a few rows cost several times what they
take: 18 ms against 3.5 for 60 rows of a 1.3 B model. What changes from pass to pass (tokens, slots,
positions, number of slots) is read on the device from one small tensor; the cache's memory is
reserved once and never moves, so the same graph serves it after any patch.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.dispatch import Kernels
from ...kernels.matmul.fusion import CacheRows, Fusion
from ...kernels.weights.linear import Linear
from ...kernels.weights.packed import QuantWeight
from .attention import FEW_ROWS
from .heads import Logits, summarized
from .kv_cache import KVCache, Slots
from .layers import LayerStack
from .mlp import DenseMlp

# A patch, and a decode step, is padded to one of these numbers of rows by repeating its last one.
PATCH_ROWS = (4, 16, 32, FEW_ROWS)
DECODE_ROWS = (1, 2, 4, 8, 16)
# So many rows go through `fused_linear` in one launch.
FUSED_ROWS = 4

Result = TypeVar("Result")


def sees_every_slot(cache: KVCache, slots: Slots) -> bool:
    """Return whether these rows are one, at the last position: what a `DecodeGraph` computes."""
    return len(slots) == 1 and bool(cache.positions[slots[0]] >= cache.positions.max())


class CapturedPass(Generic[Result]):
    """A pass of one decoder's layers over one cache, on inputs of fixed size.

    On CUDA it is captured when it runs for the second time and replayed from then on: a capture
    takes as long as several passes. The first time, and elsewhere, the same launches are made one
    by one. It belongs to the cache and does not keep it alive.
    """

    def __init__(
        self,
        stack: LayerStack,
        cache: KVCache,
        kernels: Kernels,
        num_inputs: int,
    ) -> None:
        """Prepare; nothing is compiled or captured yet.

        Args:
            stack: the layers, and what stands around them.
            cache: made for that decoder.
            kernels: the ops of the layers' device.
            num_inputs: int64 values that a pass reads.
        """
        self._stack, self._kernels = stack, kernels
        self._cache: KVCache = weakref.proxy(cache)
        self._is_cuda = stack.device.type == "cuda"
        self._inputs = torch.zeros(num_inputs, dtype=torch.int64, device=stack.device)
        self._staged = torch.zeros(num_inputs, dtype=torch.int64, pin_memory=self._is_cuda)
        self._copied = torch.cuda.Event() if self._is_cuda else None
        self._has_run = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    @property
    def is_captured(self) -> bool:
        """Whether it is as quick from now on as it can be."""
        return self._graph is not None or not self._is_cuda

    def _run(self, *inputs: Slots | list[int]) -> Result:
        """Copy the inputs, in a row, and compute; the cache's next pass overwrites the result."""
        if self._copied is not None:
            self._copied.synchronize()  # the previous copy may not have read it yet
        values = np.concatenate(inputs)
        self._staged.numpy()[: len(values)] = values
        count = len(values)
        self._inputs[:count].copy_(self._staged[:count], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        if not self._is_cuda or not self._has_run:
            self._has_run = True
            return self._compute()
        if self._graph is None or self._result is None:
            self._capture()
        assert self._graph is not None and self._result is not None
        self._graph.replay()
        return self._result

    def _capture(self) -> None:
        device = self._stack.device
        # Triton compiles and memory is first taken before the capture, which allows neither. The
        # rows are computed twice then, to the same keys and values.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._compute()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One piece of memory for all graphs of a cache: they run one after another, and what one
        # of them gives is read before the next one runs.
        pool: Any = self._cache.graphs.setdefault("memory", torch.cuda.graph_pool_handle())
        # Other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._result = self._compute()
        self._graph = graph

    def _compute(self) -> Result:
        """Launch the whole pass; no value is read on the host."""
        raise NotImplementedError

    def _input(self, start: int, count: int) -> Tensor:
        return self._inputs[start : start + count]

    def _count(self, at: int) -> Tensor:
        """Return the (1,) int32 that an input is: its lower half, little-endian."""
        return self._inputs[at : at + 1].view(torch.int32)[:1]


def has_plain_weights(stack: LayerStack) -> bool:
    """Return whether all projections are dense or packed matrices; bit planes are none of these."""
    projections = [stack.head]
    for layer in stack.layers:
        if not isinstance(layer.mlp, DenseMlp):
            return False
        projections += [layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down]
    return all(
        isinstance(getattr(linear, "weight", None), Tensor | QuantWeight) for linear in projections
    )


class DecodeGraph(CapturedPass[Logits]):
    """A decode step: rows of generated tokens, and the logits after each.

    Up to four rows of Llama's layers are five or six launches a layer; of others, and more rows,
    each operation is one.
    """

    def __init__(
        self, stack: LayerStack, cache: KVCache, kernels: Kernels, num_rows: int = 1
    ) -> None:
        """Prepare; arguments as for `CapturedPass`, and the rows that are computed each time."""
        # A row alone sees all that is there, and needs no positions of slots.
        num_others = 1 if num_rows == 1 else 2 + cache.capacity
        super().__init__(stack, cache, kernels, 3 * num_rows + num_others)
        self._num_rows = num_rows
        self._is_fused = num_rows <= FUSED_ROWS and self.can_fuse(stack)

    @staticmethod
    def can_fuse(stack: LayerStack) -> bool:
        """Return whether `fused_linear` does all of the step: layers and head are Llama's."""
        if stack.head_bias is not None or stack.config.logit_cap is not None:
            return False
        blocks = stack.config.blocks()
        return has_plain_weights(stack) and not any(block.beyond_llama() for block in blocks)

    def step(self, slot: int) -> Tensor:
        """Compute one row, for which `sees_every_slot` holds; return its (vocab_size,) logits."""
        return self.decode(np.array([slot])).rows[0]

    @torch.inference_mode()
    def decode(self, slots: Slots) -> Logits:
        """Compute rows of the cache, their keys and values included.

        Args:
            slots: 1 to `num_rows` of them; if that is one, `sees_every_slot` holds for it.

        Returns:
            The logits after each. On CUDA the next pass over the cache overwrites them.
        """
        cache, count = self._cache, len(slots)
        padded = np.pad(slots, (0, self._num_rows - count), mode="edge")
        inputs = [cache.token_ids[padded], padded, cache.positions[padded], [cache.num_rows]]
        if self._num_rows > 1:
            inputs += [[0], cache.positions]
        found = self._run(*inputs)
        assert found.summaries is not None, "it makes them"
        return Logits(found.rows[:count], found.summaries[:count])

    def _compute(self) -> Logits:
        count = self._num_rows
        token_ids, slots, positions = (self._input(at * count, count) for at in range(3))
        seen = [self._count(3 * count)]
        if count > 1:
            seen += [positions, self._input(3 * count + 2, self._cache.capacity)]
        if self._is_fused:
            logits = self._fused(token_ids, slots, positions, seen)
        else:

            def attend(number: int, queries: Tensor) -> Tensor:
                _, keys, values = (part[number] for part in self._cache.storage)
                return self._kernels.attend_slots(queries, keys, values, *seen)

            stack = self._stack
            layers = range(len(stack.layers))
            hidden = stack.embed(token_ids)
            hidden = stack.run(self._cache, hidden, slots, positions, attend, layers)
            logits = stack.logits(hidden)
        return Logits(logits, summarized(logits))

    def _fused(
        self, token_ids: Tensor, slots: Tensor, positions: Tensor, seen: list[Tensor]
    ) -> Tensor:
        """Return (num_rows, vocab_size) logits; the layers as `can_fuse` asks."""
        stack, cache = self._stack, self._cache
        eps, attend = stack.config.norm_eps, self._kernels.attend_slots
        hidden = stack.embed(token_ids)
        for number, layer in enumerate(stack.layers):
            mlp, table = layer.mlp, cache.tables.of(number)
            assert isinstance(mlp, DenseMlp) and layer.mlp_norm is not None, "as `can_fuse` asks"
            unrotated, keys, values = (part[number] for part in cache.storage)
            angles = (table.cos, table.sin, table.interleaved)
            rows = CacheRows(unrotated, keys, values, slots, positions, *angles)
            gain = layer.attention_norm.weight
            queries = self._linear(hidden, layer.qkv, Fusion(gain, eps, cache=rows))
            mixed = attend(queries, keys, values, *seen).flatten(1)
            hidden = self._linear(mixed, layer.output, Fusion(residual=hidden))
            gain = layer.mlp_norm.weight
            gated = self._linear(hidden, mlp.gate_up, Fusion(gain, eps, gated=True))
            hidden = self._linear(gated, mlp.down, Fusion(residual=hidden))
        return self._linear(hidden, stack.head, Fusion(stack.norm.weight, eps), torch.float32)

    def _linear(
        self, x: Tensor, linear: Linear, fusion: Fusion, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        made: Any = linear  # dense or packed: both have a weight and a bias
        return self._kernels.fused_linear(x, made.weight, made.bias, fusion, out_dtype=out_dtype)


class PatchGraph(CapturedPass[Tensor]):
    """A pass over a few rows at any positions, up to a fixed number of them."""

    def __init__(
        self,
        stack: LayerStack,
        cache: KVCache,
        kernels: Kernels,
        num_rows: int,
        layers: range | None = None,
        *,
        is_given: bool = False,
        recorded: frozenset[int] = frozenset(),
        skipped: bytes | None = None,
    ) -> None:
        """Prepare; arguments as for `CapturedPass`, and what is computed each time.

        Args:
            stack: as for `CapturedPass`.
            cache: as for `CapturedPass`.
            kernels: as for `CapturedPass`.
            num_rows: rows that are computed each time.
            layers: numbers of the layers that they go through; None: all.
            is_given: they begin with hidden states that are handed in, not with embeddings.
            recorded: layers whose attention weights are kept for `attention`.
            skipped: as for `CpuStep.forward`.
        """
        super().__init__(stack, cache, kernels, 3 * num_rows + 2 + cache.capacity)
        self._num_rows, self._skipped = num_rows, skipped
        self._layers = range(len(stack.layers)) if layers is None else layers
        size = (num_rows, stack.config.hidden_size)
        self._given: Tensor | None = None
        if is_given:
            self._given = torch.zeros(size, dtype=stack.dtype, device=stack.device)
        shape = (num_rows, cache.capacity)
        self._weights = {
            number: torch.zeros(shape, device=stack.device)
            for number in recorded
            if number in self._layers
        }

    def attention(self) -> dict[int, Tensor]:
        """Return the last pass's attention weights, layer to (num_rows, slots in use) float32.

        The next pass overwrites them.
        """
        used = self._cache.num_rows
        return {number: weights[:, :used] for number, weights in self._weights.items()}

    @torch.inference_mode()
    def forward(self, slots: Slots, hidden: Tensor | None = None) -> Tensor:
        """Compute rows as `Decoder.forward` does.

        Args:
            slots: 1 to `num_rows` of the cache's.
            hidden: (len(slots), hidden_size) float, where the rows begin with given hidden states.

        Returns:
            (len(slots), hidden_size) of the model's dtype: the last of the layers' output, before
            the final norm. On CUDA the next pass over the cache overwrites it.
        """
        cache, count = self._cache, len(slots)
        if self._given is not None and hidden is not None:
            self._given[:count] = hidden
            self._given[count:] = hidden[-1:]
        padded = np.pad(slots, (0, self._num_rows - count), mode="edge")
        of_rows = (cache.token_ids[padded], padded, cache.positions[padded])
        return self._run(*of_rows, [cache.num_rows, 0], cache.positions)[:count]

    def _compute(self) -> Tensor:
        count, cache, stack = self._num_rows, self._cache, self._stack
        token_ids, slots, positions = (self._input(at * count, count) for at in range(3))
        num_slots = self._count(3 * count)
        slot_positions = self._input(3 * count + 2, cache.capacity)

        def attend(number: int, queries: Tensor) -> Tensor:
            _, keys, values = (part[number] for part in cache.storage)
            at = (num_slots, positions, slot_positions)
            weights = self._weights.get(number)
            return self._kernels.attend_slots(queries, keys, values, *at, weights=weights)

        hidden = stack.embed(token_ids) if self._given is None else self._given
        return stack.run(cache, hidden, slots, positions, attend, self._layers, None, self._skipped)
