"""One decoder for every supported family, driven by its configuration, over a KV cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import numpy as np
import torch
from torch import Tensor

from ...kernels import dispatch
from ...kernels.cpu.step import CpuStep
from ...kernels.cpu.step_weights import StepLayer, StepWeights
from ...kernels.weights.linear import Linear, Matrix
from ...kernels.weights.low_rank import FusedUpdate, LowRank, adapted
from ...kernels.weights.packed import BitWeight, QuantWeight, RowSource
from ..wire.errors import ModelLoadError
from . import tensors as names
from .captured_pass import DECODE_ROWS, PATCH_ROWS, sees_every_slot
from .config import ModelConfig
from .heads import DraftHead, Head, Logits, head_of, head_over, summarized
from .kv_cache import KVCache, Slots
from .layers import Check, Layer, LayerStack, Norm, norm_of
from .pass_cost import PassCost, StepCost
from .passes import (
    AttentionRecord,
    EagerPass,
    GraphPass,
    Pass,
    Rows,
    StepPass,
    refuse_unsupported,
)


class Decoder:
    """A stack of decoder layers over a cache, and the passes that its device has for it.

    Attributes:
        config: its shape.
        stack: its weights.
        dtype: of activations, and of weights that are not in blocks.
        device: where it lives.
        cost: what its passes take here.
        step_cost: what its decode steps take here.
        is_adapted: an adapter is served beside the weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: MutableMapping[str, Matrix],
        plane_bits: int | None = None,
    ) -> None:
        """Take over the weights of a model.

        Args:
            config: the model's shape.
            tensors: Hugging Face names to weights: tensors of one dtype, or matrices in blocks;
                emptied as they are used.
            plane_bits: 2 to 8: round the layers' projections to so many bit planes; None: as given.

        Raises:
            ModelLoadError: a layer is of a kind that no pass computes, or bit planes do not hold
                its matrices.
        """
        refuse_unsupported(config, config.family)
        self.config = config
        self.cost, self.step_cost = PassCost(), StepCost()
        self._all_layers = range(config.num_layers)
        norm, norm_bias = names.take_norm(tensors, "model.norm")
        self.dtype, self.device = norm.dtype, norm.device
        kernels = dispatch.choose(self.device)
        to_planes = _rounding(config, kernels, plane_bits)

        def linear(weight: Matrix | BitWeight, bias: Tensor | None) -> Linear:
            if isinstance(weight, BitWeight):
                assert kernels.bit_linear is not None, "made of those that round"
                return kernels.bit_linear(weight, bias, self.dtype)
            return kernels.linear(weight, bias, self.dtype)

        embedding: RowSource = tensors.pop(names.EMBEDDING)
        head = tensors.pop(names.HEAD, embedding)
        to_logits = kernels.head(head, self.dtype)
        if isinstance(packed := getattr(to_logits, "weight", None), QuantWeight):
            # Rows are taken of what was packed: the blocks are let go before the layers are read.
            embedding = packed if embedding is head else embedding
            head = packed
        head_bias = tensors.pop(names.HEAD_BIAS, None)
        assert head_bias is None or isinstance(head_bias, Tensor), "a vector is never in blocks"
        blocks = config.blocks()
        has_step = kernels.whole_step is not None and plane_bits is None
        has_step = has_step and not any(StepPass.lacks(block) for block in blocks)
        layers: list[Layer] = []
        in_step: list[StepLayer] = []
        for number in range(config.num_layers):
            taken = names.take_layer(tensors, config, number, self.dtype, to_planes)
            layers.append(Layer.of(config, kernels, taken, linear))
            if has_step:
                window = config.block(number).sliding_window or 0
                in_step.append(StepLayer.of(taken.norms, taken.matrices, window))
        final = norm_of(config, kernels, norm, norm_bias)
        self.stack = stack = LayerStack(
            config, kernels, embedding, layers, final, to_logits, head_bias
        )
        step = None
        if has_step and not isinstance(head, QuantWeight):
            step = self._step(kernels, in_step, final, head)
        self._in_c, self._head_rows = step, head
        self._head = head_of(stack, step)
        passes: list[Pass] = [EagerPass(stack)]
        if step is not None:
            in_blocks = (
                m for layer in in_step for m, _ in layer.linears() if not torch.is_tensor(m)
            )
            num_values = sum(math.prod(matrix.shape) for matrix in in_blocks)
            dense_bytes = num_values * self.dtype.itemsize
            passes.insert(0, StepPass(stack, step, dense_bytes=dense_bytes))
        if GraphPass.exists_for(stack):
            passes.insert(0, GraphPass(stack))
        # The first that serves some rows computes them; the last serves any.
        self._passes = [each for each in passes if not any(map(each.lacks, blocks))]
        self._graphs = next((each for each in self._passes if isinstance(each, GraphPass)), None)
        self.is_adapted = False

    def adapt(self, updates: Mapping[str, LowRank]) -> None:
        """Serve an adapter beside the weights, in place of the one before; {} is none.

        Rows that were computed before are of other weights.

        Args:
            updates: name of a projection, as in files, to its update.
        """
        shapes = names.expected_shapes(self.config)
        in_step: list[dict[str, FusedUpdate]] = []
        for number, layer in enumerate(self.stack.layers):
            in_step.append({})
            for field, parts in names.projections_of(self.config):
                of_parts = [f"model.layers.{number}.{part.name}" for part in parts]
                found = [updates.get(name) for name in of_parts]
                rows = [shapes[f"{name}.weight"][0] for name in of_parts]
                update = FusedUpdate.of(found, rows, self.device, self.dtype)
                if update is not None:
                    in_step[-1][field] = update
                owner = layer if field in ("qkv", "output") else layer.mlp
                if hasattr(owner, field):  # experts are never adapted
                    setattr(owner, field, adapted(getattr(owner, field), update))
        if self._in_c is not None:
            self._in_c.adapt(in_step)
        if self._graphs is not None:
            self._graphs.note_other_weights()
        self.is_adapted = bool(updates)

    def _step(
        self, kernels: dispatch.Kernels, layers: list[StepLayer], norm: Norm, head: Matrix
    ) -> CpuStep | None:
        """Return the C library with the weights, if it can read them."""
        config = self.config
        assert kernels.whole_step is not None, "asked for where there is one"
        shape = {"num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads}
        if StepWeights.obstacle(layers, head, **shape):
            return None
        weights = StepWeights(
            layers,
            norm.weight,
            head,
            **shape,
            eps=config.norm_eps,
            interleaved=config.rope_interleaved,
            norm_bias=norm.bias,
            layer_norm=norm.is_layer,
            activation=config.block(0).activation,
            is_gated=config.is_gated,
        )
        return kernels.whole_step(weights)

    @torch.inference_mode()
    def forward(
        self,
        cache: KVCache,
        slots: Slots,
        check: Check,
        record: AttentionRecord | None = None,
        *,
        layers: range | None = None,
        hidden: Tensor | None = None,
        skipped: bytes | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        """Compute any set of rows over the cache, in one pass.

        Every row sees all rows of the cache at its position and before, those of this pass
        included, but for what is `unseen`. Their keys and values are written as the pass goes.

        Args:
            cache: holds the rows' tokens and positions.
            slots: (n,) the rows to compute.
            check: called between layers, or once where layers are not launched one by one; what it
                raises leaves the rows half written.
            record: asks for attention weights.
            layers: numbers of the layers that the rows go through, in a row; None: all. Keys and
                values of the others stay as they are.
            hidden: (n, hidden_size) what the layer before the first of these gave; None: the rows'
                embeddings.
            skipped: as for `Rows`.
            unseen: as for `Rows`.

        Returns:
            (n, hidden_size) float32: the output of the last of the layers, before the final norm;
            float32 whatever pass computed it.
        """
        through = self._all_layers if layers is None else layers
        rows = Rows(slots, through, hidden, record, skipped, unseen)
        return self._pass_for(rows).run(cache, rows, check).float()

    @torch.inference_mode()
    def last_logits(
        self,
        cache: KVCache,
        slots: Slots,
        check: Check,
        record: AttentionRecord | None = None,
        *,
        layers: range | None = None,
    ) -> Tensor:
        """Compute rows as `forward` does; return the (vocab_size,) logits after the last of them.

        Where `layers` leaves some out, the last of them is read by the norm and the head. On a GPU
        one row that sees all others, a decode step through all layers, is a captured graph.
        """
        layers = self._all_layers if layers is None else layers
        is_plain = record is None and layers == self._all_layers
        if self._graphs is not None and is_plain and sees_every_slot(cache, slots):
            return self._graphs.decode(cache, slots, check).rows[0].clone()
        rows = Rows(slots, layers, record=record)
        return self._head(self._pass_for(rows).run(cache, rows, check)[-1:])[0]

    @torch.inference_mode()
    def decode(self, cache: KVCache, slots: Slots, check: Check) -> Logits:
        """Compute rows of generated tokens, which see all that is there, to the logits after each.

        On a GPU up to 16 of them are a captured graph, the head and what is read of the logits
        included. The next pass over the cache overwrites what is returned.

        Args:
            cache: holds the rows' tokens and positions.
            slots: (n,) the rows, the last by position.
            check: as for `forward`.
        """
        if self._graphs is not None and len(slots) <= DECODE_ROWS[-1]:
            return self._graphs.decode(cache, slots, check)
        rows = Rows(slots, self._all_layers)
        logits = self._head(self._pass_for(rows).run(cache, rows, check).float())
        return Logits(logits, summarized(logits) if logits.is_cuda else None)

    def uncaptured(self, cache: KVCache) -> int | None:
        """Return a number of rows whose decode steps are to be captured still; None: none is."""
        return None if self._graphs is None else self._graphs.uncaptured(cache)

    def _pass_for(self, rows: Rows) -> Pass:
        for each in self._passes:
            if each.serves(rows):
                return each
        raise AssertionError("launches one by one serve any rows")

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        With bf16 weights, on a CPU without the C library and for few rows, only the largest logits
        of a row are exact to float32; the others carry bf16's rounding.
        """
        return self._head(hidden)

    def head_over(self, token_ids: Tensor) -> Head:
        """Return what gives (n, m) float32 logits of (m,) int64 tokens alone, as `logits` does."""
        return torch.inference_mode()(head_over(self.stack, self._in_c, self._head_rows, token_ids))

    @property
    def is_in_c(self) -> bool:
        """Whether the C library has the weights."""
        return self._in_c is not None

    def draft_head(self, token_ids: Slots) -> DraftHead:
        """Return a head over the commonest tokens and these, for the output of any layer."""
        return DraftHead(self._head, self._in_c, self._head_rows, token_ids)

    @torch.inference_mode()
    def warm_up(self, capacity: int) -> Iterator[None]:
        """Run every kind of pass once over a cache of that capacity, one with every `next`.

        What is not compiled yet is compiled then, and not at a keystroke; Triton keeps it on the
        disk for the next start. Nothing is captured: a graph belongs to one document's cache.
        """
        cache = KVCache(self.config, capacity, self.dtype, self.device)
        rows = min(capacity, PATCH_ROWS[-1] + 1)
        slots = cache.append(np.zeros(rows, dtype=np.int64), np.arange(rows))
        self.forward(cache, slots, lambda: None)
        yield
        for count in DECODE_ROWS:
            self.decode(cache, slots[-count:], lambda: None)
            yield
        for count in PATCH_ROWS:
            self.forward(cache, slots[:count], lambda: None)
            yield
        if self.device.type == "cuda":
            self._calibrate(cache, slots)

    def _calibrate(self, cache: KVCache, slots: Slots) -> None:
        """Time a few passes: later nobody waits for one alone."""
        for count in (PATCH_ROWS[0], len(slots)) * 2:
            torch.cuda.synchronize(self.device)
            started_at = time.perf_counter()
            self.forward(cache, slots[:count], lambda: None)
            torch.cuda.synchronize(self.device)
            self.cost.observe(count, (time.perf_counter() - started_at) * 1e3)


def _rounding(
    config: ModelConfig, kernels: dispatch.Kernels, plane_bits: int | None
) -> Callable[[Matrix], BitWeight] | None:
    """Return what rounds a matrix to so many bit planes; None for None."""
    if plane_bits is None:
        return None
    rounds = kernels.to_planes
    assert rounds is not None, "asked for where there are none"
    _refuse_odd_columns(config, plane_bits)
    return lambda matrix: rounds(matrix, plane_bits)


def _refuse_odd_columns(config: ModelConfig, plane_bits: int) -> None:
    inner = config.intermediate_size if config.experts is None else config.experts.inner
    widths = (config.hidden_size, config.num_heads * config.head_dim, inner)
    if any(width % 32 for width in widths):
        raise ModelLoadError(
            f"this model's matrices have {', '.join(map(str, widths))} columns, and b{plane_bits} "
            "takes multiples of 32; leave quant out"
        )
