"""The ways to compute rows: the C step, captured graphs, and launches one by one.

All three compute the same rows of the same cache; a decoder holds those that its device has and
its layers are supported by, in order of preference, and takes for every pass the first one that
serves it. Nothing is decided again further in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...kernels.cpu.step import CpuStep
from ...kernels.dispatch import Kernels
from ..wire.errors import ModelLoadError
from .attention import Visibility, visibility
from .captured_pass import (
    DECODE_ROWS,
    FEW_ROWS,
    PATCH_ROWS,
    DecodeGraph,
    PatchGraph,
    has_plain_weights,
)
from .config import Block, ModelConfig
from .heads import Logits
from .kv_cache import KVCache, Slots
from .layers import Check, LayerStack
from .limited_attention import Limited, limited

# On the CPU up to so many rows go through all layers in one call.
_STEP_ROWS = 16
# Values that a CPU may keep of weights that are in blocks, to multiply many rows by.
MOST_DENSE_BYTES = 1_000_000_000
# What passes compute beyond a layer of Llama, by the keys of `Block.beyond_llama`. In a graph
# launches are always the same: experts are chosen on the host, and attention to slots has neither
# windows nor caps.
_IN_C = frozenset({"norm", "norm_bias", "activation", "plain_mlp", "qk_norm", "window"})
_CAPTURED = _IN_C - {"window"} | {"exact_gelu", "parallel", "post_norms"}
_HALVES = (torch.bfloat16, torch.float16)  # what the kernels of a GPU multiply


@dataclass(slots=True)
class AttentionRecord:
    """Attention weights that a forward pass is asked to leave behind.

    Attributes:
        layers: the layers wanted.
        rows: which rows of the forward are wanted, as indices into its `slots`; None: all.
        weights: filled in: layer to (len(rows), num_rows) float32, mean over heads, one column per
            slot of the cache.
    """

    layers: frozenset[int]
    rows: list[int] | None = None
    weights: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, layer: int, weights: Tensor, num_rows: int) -> None:
        """Take a layer's weights, (n, num_rows) of the first `num_rows` rows or more."""
        self.weights[layer] = weights[:num_rows] if self.rows is None else weights[self.rows]


@dataclass(slots=True)
class Rows:
    """What one pass is to compute.

    Attributes:
        slots: (n,) rows of the cache.
        layers: numbers of the layers that they go through, in a row.
        hidden: (n, hidden_size) float32, what the layer before the first one gave; None: the rows
            begin with their tokens' embeddings, at layer 0.
        record: asks for attention weights.
        skipped: what they are not put through of each of the model's layers, as for
            `CpuStep.forward`; None: nothing.
        unseen: (n, t) bool, on the host: of the cache's last t rows, those that a row does not see
            though they are at its position or before; None: each sees all of these.
    """

    slots: Slots
    layers: range
    hidden: Tensor | None = None
    record: AttentionRecord | None = None
    skipped: bytes | None = None
    unseen: Tensor | None = None


class Pass(Protocol):
    """One way to compute rows.

    Hidden states enter it in float32 whatever the weights are in: the C step sums in it, and values
    of bfloat16 or float16 pass through it unharmed.
    """

    @staticmethod
    def lacks(block: Block) -> tuple[str, ...]:
        """Return, in words, what a layer has that this pass does not compute; () supports it."""
        ...

    def serves(self, rows: Rows) -> bool:
        """Return whether this pass computes such rows."""
        ...

    def run(self, cache: KVCache, rows: Rows, check: Check) -> Tensor:
        """Compute rows; their keys and values are written as it goes.

        Returns:
            (n, hidden_size) float32, or of the model's dtype: the last of the layers' output,
            before the final norm; the next pass may overwrite it.
        """
        ...


def refuse_unsupported(config: ModelConfig, where: str | Path) -> None:
    """Raise ModelLoadError if a layer is of a kind that no pass computes.

    Launches one by one are what every device has, and what the other passes fall back to.

    Args:
        config: the model's shape.
        where: the file or folder that the message names.
    """
    blocks = config.blocks()
    missing = list(dict.fromkeys(words for block in blocks for words in EagerPass.lacks(block)))
    if missing:
        raise ModelLoadError(
            f"{where}: layers with {', '.join(missing)} are not supported; use a model of another "
            "family, see keyturn models"
        )


class EagerPass:
    """Launches one by one: any rows on any device."""

    def __init__(self, stack: LayerStack) -> None:
        """Take the layers to launch."""
        self._stack = stack
        is_half = stack.dtype in _HALVES
        is_ours = stack.kernels.backend == "triton" and stack.device.type == "cuda" and is_half
        self._attend_few = stack.kernels.attend_slots if is_ours else None
        blocks = map(stack.config.block, range(stack.config.num_layers))
        # By layer: what its rows do not see of what lies before them, and what caps their scores.
        self._limits = [(block.sliding_window, block.score_cap) for block in blocks]

    @staticmethod
    def lacks(block: Block) -> tuple[str, ...]:
        """Return what a layer has that this pass does not compute, as `Pass` says."""
        return block.unknown()

    def serves(self, rows: Rows) -> bool:
        """Return whether this pass computes such rows: it does."""
        return True

    def run(self, cache: KVCache, rows: Rows, check: Check) -> Tensor:
        """Compute rows, as `Pass` says; any of them, with a record or without."""
        stack, record, num_asked = self._stack, rows.record, len(rows.slots)
        slots, unseen = rows.slots, rows.unseen
        if stack.device.type == "cpu":
            slots = _padded(slots)
        if unseen is not None:
            again = unseen[-1:].expand(len(slots) - num_asked, -1)
            unseen = torch.cat([unseen, again]).to(stack.device, non_blocking=True)
        plain = visibility(slots, cache.positions, stack.dtype, stack.device, self._attend_few)
        views = {
            limits: limited(plain, slots, cache.positions, *limits, stack.dtype, unseen)
            for limits in {self._limits[number] for number in rows.layers}
        }
        index = torch.from_numpy(slots).to(stack.device, non_blocking=True)
        if rows.hidden is None:
            token_ids = torch.from_numpy(cache.token_ids[slots])
            hidden = stack.embed(token_ids.to(stack.device, non_blocking=True))
        else:
            again = rows.hidden[-1:].expand(len(slots) - num_asked, -1)
            hidden = torch.cat([rows.hidden, again]).to(stack.dtype)

        def attend(number: int, queries: Tensor) -> Tensor:
            weights = None
            if record is not None and number in record.layers:
                weights = torch.empty(len(queries), cache.num_rows, device=queries.device)
            _, keys, values = (part[number] for part in cache.storage)
            seen = views[self._limits[number]]
            mixed = _attend(keys, values, queries, seen, weights, stack.kernels)
            if record is not None and weights is not None:
                record.keep(number, weights, num_asked)
            return mixed

        positions = plain.row_positions
        hidden = stack.run(
            cache, hidden, index, positions, attend, rows.layers, check, rows.skipped
        )
        return hidden[:num_asked]


class GraphPass:
    """Captured graphs, for up to 64 rows on a GPU; one for every size, range and record."""

    def __init__(self, stack: LayerStack) -> None:
        """Take the layers to capture."""
        self._stack = stack
        self._num_changes = 0  # of the weights

    def note_other_weights(self) -> None:
        """Capture anew what was captured: a graph reads the weights of its time."""
        self._num_changes += 1

    @staticmethod
    def lacks(block: Block) -> tuple[str, ...]:
        """Return what a layer has that this pass does not compute, as `Pass` says."""
        return block.lacks(_CAPTURED)

    @staticmethod
    def exists_for(stack: LayerStack) -> bool:
        """Return whether graphs can be captured of these weights on their device."""
        is_triton = stack.kernels.backend == "triton" and stack.device.type == "cuda"
        return is_triton and stack.dtype in _HALVES and has_plain_weights(stack)

    def serves(self, rows: Rows) -> bool:
        """Return whether this pass computes such rows."""
        return len(rows.slots) <= FEW_ROWS and rows.unseen is None

    def decode(self, cache: KVCache, slots: Slots, check: Check) -> Logits:
        """Compute up to 16 rows to the logits after them; one alone must see every slot.

        The next pass overwrites them.
        """
        check()
        size = next(size for size in DECODE_ROWS if len(slots) <= size)
        graphs = self._graphs_of(cache)
        graph = graphs.get(size)
        if not isinstance(graph, DecodeGraph):
            graph = graphs[size] = DecodeGraph(self._stack, cache, self._stack.kernels, size)
        return graph.decode(slots)

    def uncaptured(self, cache: KVCache) -> int | None:
        """Return a number of rows whose decode steps are not captured; None: all are."""
        graphs = self._graphs_of(cache)
        for size in DECODE_ROWS:
            graph = graphs.get(size)
            if not isinstance(graph, DecodeGraph) or not graph.is_captured:
                return size
        return None

    def run(self, cache: KVCache, rows: Rows, check: Check) -> Tensor:
        """Compute rows, as `Pass` says; `check` is called once, before them."""
        check()
        size = next(size for size in PATCH_ROWS if len(rows.slots) <= size)
        recorded = frozenset[int]() if rows.record is None else rows.record.layers
        key = (size, rows.layers, rows.hidden is not None, recorded, rows.skipped)
        graphs = self._graphs_of(cache)
        graph = graphs.get(key)
        if not isinstance(graph, PatchGraph):
            kernels = self._stack.kernels
            graph = graphs[key] = PatchGraph(
                self._stack,
                cache,
                kernels,
                size,
                rows.layers,
                is_given=rows.hidden is not None,
                recorded=recorded,
                skipped=rows.skipped,
            )
        hidden = graph.forward(rows.slots, rows.hidden)
        if rows.record is not None:
            for layer, weights in graph.attention().items():
                rows.record.keep(layer, weights, len(rows.slots))
        return hidden

    def _graphs_of(self, cache: KVCache) -> dict[object, object]:
        """Return a cache's graphs of the weights as they are now."""
        if cache.graphs.setdefault("changes", self._num_changes) != self._num_changes:
            cache.graphs.clear()
            cache.graphs["changes"] = self._num_changes
        return cache.graphs


class StepPass:
    """The C library, for up to 16 rows on a CPU: all layers in one call.

    It computes any number, 16 at a time, of a model whose dense copies would be large: launches one
    by one multiply many rows up to twice as fast, and take the layers' weights as values for that:
    for 1.5 billion weights in 4 bits 2.6 GB beside 1.1, made before the first token.
    """

    def __init__(self, stack: LayerStack, step: CpuStep, *, dense_bytes: int = 0) -> None:
        """Take what computes.

        Args:
            stack: the layers, for their embeddings.
            step: the library that has their weights.
            dense_bytes: what the weights that it reads in blocks take as values.
        """
        self._stack, self._step = stack, step
        self._is_for_all = dense_bytes > MOST_DENSE_BYTES

    @staticmethod
    def lacks(block: Block) -> tuple[str, ...]:
        """Return what a layer has that this pass does not compute, as `Pass` says."""
        return block.lacks(_IN_C)

    def serves(self, rows: Rows) -> bool:
        """Return whether this pass computes such rows."""
        return self._is_for_all or len(rows.slots) <= _STEP_ROWS

    def run(self, cache: KVCache, rows: Rows, check: Check) -> Tensor:
        """Compute rows, as `Pass` says; `check` is called before each 16 of them."""
        if len(rows.slots) > _STEP_ROWS:
            return self._many(cache, rows, check)
        check()
        slots, record, hidden = rows.slots, rows.record, rows.hidden
        index, positions = torch.from_numpy(slots), torch.from_numpy(cache.positions)
        if hidden is None:
            token_ids = torch.from_numpy(cache.token_ids[slots])
            hidden = self._stack.embed(token_ids, torch.float32)
        row_positions = positions[index]
        weights = {
            layer: torch.empty(len(slots), cache.num_rows)
            for layer in (record.layers if record is not None else ())
            if layer in rows.layers
        }
        for layers, table in cache.tables.runs:  # most models have one
            layers = range(max(layers.start, rows.layers.start), min(layers.stop, rows.layers.stop))
            hidden = self._step.forward(
                hidden,
                *cache.storage,
                index,
                cache.num_rows,
                row_positions,
                positions,
                *table.at(row_positions),
                {layer: each for layer, each in weights.items() if layer in layers},
                layers,
                rows.skipped,
                rows.unseen,
            )
        if record is not None:
            for layer, each in weights.items():
                record.keep(layer, each, len(slots))
        return hidden

    def _many(self, cache: KVCache, rows: Rows, check: Check) -> Tensor:
        """Compute rows 16 at a time. They see those at lower positions: these come first."""
        count = len(rows.slots)
        order = np.argsort(cache.positions[rows.slots], kind="stable")
        # What lies at rows that are not written yet counts for nothing, unless it is no number.
        values = cache.storage[2][rows.layers.start : rows.layers.stop]
        index = torch.from_numpy(rows.slots)
        values[:, :, index] = values[:, :, index].nan_to_num(0, 0, 0)
        hidden = torch.empty(count, self._stack.config.hidden_size)
        recorded: dict[int, Tensor] = {}
        for start in range(0, count, _STEP_ROWS):
            at = order[start : start + _STEP_ROWS]
            record = None if rows.record is None else AttentionRecord(rows.record.layers)
            given = None if rows.hidden is None else rows.hidden[at]
            unseen = None if rows.unseen is None else rows.unseen[at]
            some = Rows(rows.slots[at], rows.layers, given, record, rows.skipped, unseen)
            hidden[at] = self.run(cache, some, check)
            for layer, weights in () if record is None else record.weights.items():
                whole = recorded.setdefault(layer, weights.new_empty(count, weights.shape[1]))
                whole[at] = weights
        if rows.record is not None:
            for layer, weights in recorded.items():
                rows.record.keep(layer, weights, count)
        return hidden


def _attend(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    seen: Visibility,
    weights: Tensor | None,
    kernels: Kernels,
) -> Tensor:
    """Attend, and write the weights if there is a tensor for them."""
    if weights is None or not queries.is_cuda or len(queries) <= FEW_ROWS:
        return seen.attend(queries, keys, values, weights)
    if kernels.backend != "triton" or isinstance(seen, Limited):
        return seen.attend(queries, keys, values, weights)
    # Weights of many rows and all heads at once would not fit; a kernel of its own sums them.
    used = keys[:, : weights.shape[1]]
    kernels.record_dependencies(queries, used, seen.row_positions, seen.slot_positions, weights)
    return seen.attend(queries, keys, values)


def _padded(slots: Slots) -> Slots:
    """Repeat the last row up to one of about twenty sizes.

    oneDNN compiles and keeps code for every number of rows: 8 to 20 ms the first time, and half a
    gigabyte after some hundred sizes. A repeated row writes the same keys and values again.
    """
    count = len(slots)
    step = 1 if count <= 8 else 8 if count <= 64 else 32
    return np.pad(slots, (0, -count % step), mode="edge")
