"""All decoder layers for a few rows in one call of a small C library, on the CPU.

A decode step of a small model in torch is mostly the cost of some four hundred operators. Here it
is one call that streams weights, in the blocks of their file, and cache once. `library.load` says
what stands against it; the torch path does the same work then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..weights.linear import Matrix
from ..weights.low_rank import FusedUpdate
from . import library as c_library
from .c_types import CModel, CStep
from .step_weights import DENSE_KINDS, StepWeights

# What rows may be spared of a layer; bits that add up.
SKIP_ATTENTION, SKIP_MLP = 1, 2
_ALIGNMENT = 64
# Steps with one thread after other threads did not help; doubled each time, up to the second.
_STEPS_ALONE = (8, 64)


class CpuStep:
    """The decoder of one model for few rows, with weights where they are.

    Sums and the stream between layers are float32. A row's result is the same to the bit whatever
    the other rows and the number of threads. Not for two threads at a time.
    """

    def __init__(self, library: c_library.Library, weights: StepWeights) -> None:
        """Take the library, from `library.load`, and the weights."""
        self._library, self._weights = library, weights
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._steps_alone, self._penalty = 0, _STEPS_ALONE[0]

    def adapt(self, updates: Sequence[Mapping[str, FusedUpdate]]) -> None:
        """Serve low-rank updates beside the layers' matrices, in place of those before.

        Args:
            updates: of each layer, by the fields of `StepLayer` that are updated: "qkv", "output",
                "gate_up", "down"; fp32, bf16 or fp16, on the CPU. [] is none.

        Raises:
            ValueError: they are of other shapes than the matrices; those before stay.
        """
        self._weights.adapt(updates)

    def forward(
        self,
        hidden: Tensor,
        unrotated: Tensor,
        rotated: Tensor,
        values: Tensor,
        slots: Tensor,
        num_rows: int,
        row_positions: Tensor,
        slot_positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        weights: Mapping[int, Tensor] | None = None,
        layers: range | None = None,
        skipped: bytes | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        """Run layers; as `Decoder.forward`, with every sum in float32.

        Args:
            hidden: (n, hidden_size) float: the rows' embeddings, or what the layer before gave.
            unrotated: (num_layers, num_kv_heads, capacity, head_dim) fp32, bf16 or fp16, of the
                cache; contiguous; written at `slots`.
            rotated: like it; written at `slots`, and read at slots 0 .. num_rows - 1.
            values: like it; written and read like `rotated`.
            slots: (n,) int64; where one occurs twice, its rows must be equal.
            num_rows: slots in use, those of the rows among them.
            row_positions: (n,) int64.
            slot_positions: (num_rows,) int64; a row sees the slots at its position and before.
            cos: (n, rotary_dim / 2) float32.
            sin: like `cos`.
            weights: layer to a contiguous (n, num_rows) float32 tensor that receives its attention
                weights, mean over heads.
            layers: numbers of the layers to run, in a row; None: all.
            skipped: what rows are not put through of each of the model's layers, of
                `SKIP_ATTENTION` and `SKIP_MLP`; keys and values are made all the same, of the state
                that passes by. None: nothing.
            unseen: (n, t) bool, of the last t slots those that a row does not see whatever their
                positions; it sees its own. None: none.

        Returns:
            (n, hidden_size) float32: the last of these layers' output, before the final norm.

        Raises:
            ValueError: shapes, dtypes or slots do not fit.
        """
        count, own, model = len(hidden), self._weights, self._weights.model
        hidden = hidden.to(torch.float32, copy=True).contiguous()
        cache = (model.num_layers, model.num_kv_heads, rotated.shape[2], own.head_dim)
        _check("hidden", hidden, (count, own.hidden_size), torch.float32)
        if rotated.dtype not in DENSE_KINDS:
            raise ValueError(f"a cache of {rotated.dtype}; fp32, bf16 or fp16 is needed")
        for name, tensor in (("unrotated", unrotated), ("rotated", rotated), ("values", values)):
            _check(name, tensor, cache, rotated.dtype)
        _check("slots", slots, (count,), torch.int64)
        _check("row_positions", row_positions, (count,), torch.int64)
        _check("slot_positions", slot_positions, (num_rows,), torch.int64)
        _check("cos", cos, (count, cos.shape[-1]), torch.float32)
        _check("sin", sin, cos.shape, torch.float32)
        if 2 * cos.shape[-1] > own.head_dim:
            raise ValueError(f"{cos.shape[-1]} angles for heads of {own.head_dim}")
        if not 0 < num_rows <= rotated.shape[2]:
            raise ValueError(f"{num_rows} rows in a cache of {rotated.shape[2]} slots")
        if count and not (0 <= int(slots.min()) and int(slots.max()) < num_rows):
            raise ValueError(f"slots {slots.tolist()} are not all below {num_rows}")
        first = 0
        if layers is not None and len(layers) != model.num_layers:
            if not layers:
                return hidden
            model, first = own.part(layers), layers.start
            unrotated, rotated, values = unrotated[first:], rotated[first:], values[first:]
        step = CStep(
            hidden=hidden.data_ptr(),
            unrotated=unrotated.data_ptr(),
            rotated=rotated.data_ptr(),
            cached_values=values.data_ptr(),
            slots=slots.data_ptr(),
            row_positions=row_positions.data_ptr(),
            slot_positions=slot_positions.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            n=count,
            num_slots=num_rows,
            capacity=rotated.shape[2],
            cache_kind=DENSE_KINDS[rotated.dtype],
            rotary_half=cos.shape[-1],
        )
        if unseen is not None:
            num_marked = unseen.shape[-1]
            if num_marked > num_rows:
                raise ValueError(f"{num_marked} slots that may be unseen, of {num_rows}")
            _check("unseen", unseen, (count, num_marked), torch.bool)
            step.unseen, step.num_marked = unseen.data_ptr(), num_marked
        if skipped is not None:
            if len(skipped) != own.model.num_layers:
                raise ValueError(f"{len(skipped)} layers to skip of {own.model.num_layers}")
            passed = ctypes.create_string_buffer(skipped[first : first + model.num_layers])
            step.skipped = ctypes.addressof(passed)
        places = None
        if weights:
            places = (ctypes.c_void_p * model.num_layers)()
            for layer, tensor in weights.items():
                _check(f"weights of layer {layer}", tensor, (count, num_rows), torch.float32)
                if not 0 <= layer - first < model.num_layers or (
                    skipped is not None and skipped[layer] & SKIP_ATTENTION
                ):
                    raise ValueError(f"weights of layer {layer}, which is not run")
                places[layer - first] = tensor.data_ptr()
            step.weights = ctypes.addressof(places)
        self._run(step, model)
        return hidden

    def logits(self, hidden: Tensor, head: Matrix | None = None) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        Args:
            hidden: (n, hidden_size).
            head: rows of the head, (m, hidden_size), for the logits of so many tokens; None: all.
        """
        hidden = hidden.to(torch.float32).contiguous()
        own = self._weights
        _check("hidden", hidden, (len(hidden), own.hidden_size), torch.float32)
        model = own.model if head is None else own.with_head(head)
        logits = torch.empty(len(hidden), model.head.rows)
        step = CStep(hidden=hidden.data_ptr(), logits=logits.data_ptr(), n=len(hidden))
        self._run(step, model)
        return logits

    def _run(self, step: CStep, of: CModel) -> None:
        if not step.n:
            return
        step.parallel = self._library.parallel
        # On a busy machine threads wait for each other's processors longer than they help.
        is_alone = not self._library.parallel or self._steps_alone > 0
        step.num_threads = 1 if is_alone else torch.get_num_threads()
        step.isa = c_library.ISAS.index(self._library.isa)
        model, at = ctypes.addressof(of), ctypes.addressof(step)
        needed = self._library.handle.keyturn_scratch_bytes(model, at) + _ALIGNMENT
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed + needed // 4, dtype=torch.uint8)
        start = self._scratch.data_ptr()
        step.scratch = start + -start % _ALIGNMENT
        gain = self._library.handle.keyturn_run(model, at)
        if is_alone:
            self._steps_alone -= 1
        elif gain < 1:
            self._steps_alone = self._penalty
            self._penalty = min(2 * self._penalty, _STEPS_ALONE[1])
        else:
            self._penalty = _STEPS_ALONE[0]


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    is_wrong = tensor.shape != torch.Size(shape) or tensor.dtype != dtype
    if is_wrong or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}, wanted "
            f"{list(shape)} {dtype}, contiguous, on the CPU"
        )
