"""All decoder layers for a few rows in one call of a small C library, on the CPU.

A decode step of a small model in torch is mostly the cost of some four hundred operators. Here it
is one call that streams weights, in the blocks of their file, and cache once. `load` says what
stands against it; the torch path does the same work then.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..weights.blocks import BlockMatrix
from ..weights.linear import Matrix
from .c_types import CLayer, CMatrix, CModel, CStep

# The order of the enums and of the levels in cpu_step.c.
_DENSE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BLOCK_KINDS = {"Q4_0": 3, "Q4_1": 4, "Q8_0": 5}
ISAS = ("generic", "avx2", "avx512")
# What rows may be spared of a layer; bits that add up.
SKIP_ATTENTION, SKIP_MLP = 1, 2
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_ALIGNMENT = 64
# Steps with one thread after other threads did not help; doubled each time, up to the second.
_STEPS_ALONE = (8, 64)

# A matrix (N, K) and its bias (N,), or None.
Linear = tuple[Matrix, Tensor | None]


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded C library.

    Attributes:
        handle: its functions.
        isa: one of `ISAS`: the instruction set that it runs with here.
        parallel: torch's own `GOMP_parallel`; 0 if torch has none: one thread then. A second
            OpenMP runtime would fight with torch's idle threads, which spin for milliseconds.
    """

    handle: ctypes.CDLL
    isa: str
    parallel: int

    @property
    def why(self) -> str:
        """What it runs with, in words, for `keyturn doctor`."""
        return f"{self.isa}, " + ("torch's threads" if self.parallel else "one thread")


@dataclass(frozen=True, slots=True)
class StepLayer:
    """The weights of one decoder layer.

    Attributes:
        attention_norm: (hidden_size,) float.
        qkv: queries, keys and values: one fused matrix or three.
        output: the attention's output projection.
        mlp_norm: (hidden_size,) float.
        gate_up: gate and up: one fused matrix or two; without a gate one of the inner width.
        down: the MLP's output projection.
        query_norm: (head_dim,) float that every query is normed by before it is rotated, or None.
        key_norm: likewise of keys.
        window: slots that a row sees, by position, its own among them; 0: all before it.
        attention_norm_bias: (hidden_size,) float, of LayerNorm; or None.
        mlp_norm_bias: likewise.
    """

    attention_norm: Tensor
    qkv: Sequence[Linear]
    output: Linear
    mlp_norm: Tensor
    gate_up: Sequence[Linear]
    down: Linear
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    window: int = 0
    attention_norm_bias: Tensor | None = None
    mlp_norm_bias: Tensor | None = None

    @classmethod
    def of(
        cls,
        norms: Mapping[str, tuple[Tensor, Tensor | None]],
        projections: Mapping[str, Linear],
        window: int = 0,
    ) -> StepLayer:
        """Make a layer whose queries, keys and values, and whose gate and up, are fused."""
        return cls(
            norms["attention_norm"][0],
            [projections["qkv"]],
            projections["output"],
            norms["mlp_norm"][0],
            [projections["gate_up"]],
            projections["down"],
            norms.get("query_norm", (None, None))[0],
            norms.get("key_norm", (None, None))[0],
            window,
            norms["attention_norm"][1],
            norms["mlp_norm"][1],
        )

    def linears(self) -> list[Linear]:
        """Return all its matrices and biases."""
        return [*self.qkv, self.output, *self.gate_up, self.down]


@functools.cache
def load(isa: str = "auto") -> Library | str:
    """Load the library, or say in words why it cannot be used. Never raises.

    Args:
        isa: one of `ISAS`, or "auto" for the best that this processor has.
    """
    folder = Path(__file__).parent
    places = [folder / f"_cpu_step{end}" for end in importlib.machinery.EXTENSION_SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return "not built; reinstall keyturn on Linux with a C compiler at hand"
    return load_file(found, isa)


def load_file(path: Path, isa: str = "auto") -> Library | str:
    """Load the library from a file; arguments and result as for `load`."""
    if isa not in ("auto", *ISAS):
        return f"instruction set {isa!r} is not one of {', '.join(ISAS)}"
    try:
        handle = ctypes.CDLL(str(path))
        handle.keyturn_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        handle.keyturn_run.restype = ctypes.c_double
        handle.keyturn_scratch_bytes.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        handle.keyturn_scratch_bytes.restype = ctypes.c_int64
        best = handle.keyturn_best_isa()
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error}); reinstall keyturn"
    if isa == "auto" and not best:
        return "this processor has no AVX2, and torch is faster without"
    level = best if isa == "auto" else ISAS.index(isa)
    if level > best:
        return f"this processor has no {isa}"
    return Library(handle, ISAS[level], _torch_parallel())


class CpuStep:
    """The decoder of one model for few rows, with weights where they are.

    Sums and the stream between layers are float32. A row's result is the same to the bit whatever
    the other rows and the number of threads. Not for two threads at a time.
    """

    def __init__(
        self,
        library: Library,
        layers: Sequence[StepLayer],
        norm: Tensor,
        head: Matrix,
        *,
        num_heads: int,
        num_kv_heads: int,
        eps: float,
        interleaved: bool,
        norm_bias: Tensor | None = None,
        layer_norm: bool = False,
        activation: str = "silu",
        is_gated: bool = True,
    ) -> None:
        """Take the weights; nothing is copied but the norms and biases.

        Args:
            library: from `load`.
            layers: all decoder layers.
            norm: (hidden_size,) of the final norm.
            head: (vocab_size, hidden_size).
            num_heads: query heads.
            num_kv_heads: key and value heads; divides `num_heads`.
            eps: of the norms.
            interleaved: pairs of the rotation, as in `reference.apply_rotary`.
            norm_bias: (hidden_size,) of the final norm; or None.
            layer_norm: the norms are LayerNorm, else RMSNorm.
            activation: of the MLP, one of `ACTIVATIONS`.
            is_gated: the MLP has a gate.

        Raises:
            ValueError: a matrix is of a dtype, shape or place that the library cannot read; what
                `obstacle` says.
        """
        obstacle = self.obstacle(layers, head, num_heads=num_heads, num_kv_heads=num_kv_heads)
        if obstacle is not None:
            raise ValueError(obstacle)
        self._library = library
        self._kept: list[object] = []
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._steps_alone, self._penalty = 0, _STEPS_ALONE[0]
        num_projected = num_heads + 2 * num_kv_heads
        width = sum(matrix.shape[0] for matrix, _ in layers[0].qkv)
        self.hidden_size: int = layers[0].attention_norm.shape[0]
        self.head_dim: int = width // num_projected
        inner = layers[0].down[0].shape[1]
        heads = [count * self.head_dim for count in (num_heads, num_kv_heads, num_kv_heads)]
        native = (CLayer * len(layers))()
        for at, layer in zip(native, layers, strict=True):
            at.attention_norm = self._vector(layer.attention_norm)
            at.mlp_norm = self._vector(layer.mlp_norm)
            if layer.query_norm is not None and layer.key_norm is not None:
                at.query_norm = self._vector(layer.query_norm)
                at.key_norm = self._vector(layer.key_norm)
            if layer.attention_norm_bias is not None and layer.mlp_norm_bias is not None:
                at.attention_norm_bias = self._vector(layer.attention_norm_bias)
                at.mlp_norm_bias = self._vector(layer.mlp_norm_bias)
            at.window = layer.window
            hidden = self.hidden_size
            at.queries, at.keys, at.values = self._matrices(layer.qkv, heads, hidden)
            (at.output,) = self._matrices([layer.output], [hidden], heads[0])
            if is_gated:
                at.gate, at.up = self._matrices(layer.gate_up, [inner, inner], hidden)
            else:
                (at.up,) = self._matrices(layer.gate_up, [inner], hidden)
            (at.down,) = self._matrices([layer.down], [hidden], inner)
        (native_head,) = self._matrices([(head, None)], [head.shape[0]], self.hidden_size)
        self._kept.append(native)
        self._model = CModel(
            ctypes.addressof(native),
            self._vector(norm),
            None if norm_bias is None else self._vector(norm_bias),
            native_head,
            len(layers),
            self.hidden_size,
            inner,
            num_heads,
            num_kv_heads,
            self.head_dim,
            interleaved,
            layer_norm,
            ACTIVATIONS.index(activation),
            eps,
        )

    @staticmethod
    def obstacle(
        layers: Sequence[StepLayer], head: Matrix, *, num_heads: int, num_kv_heads: int
    ) -> str | None:
        """Return in words what the library cannot read of these weights; None: it reads them all.

        Args:
            layers: as for the constructor; so are the others.
            head: as for the constructor.
            num_heads: as for the constructor.
            num_kv_heads: as for the constructor.
        """
        if not layers:
            return "no layers"
        for matrix, _ in [(head, None), *(each for layer in layers for each in layer.linears())]:
            data = matrix.blocks if isinstance(matrix, BlockMatrix) else matrix
            if not isinstance(matrix, BlockMatrix) and data.dtype not in _DENSE_KINDS:
                return f"a matrix of {data.dtype}; GGUF blocks, fp32, bf16 or fp16 is needed"
            if data.device.type != "cpu" or data.stride(-1) != 1:
                return f"a matrix on {data.device} with strides {data.stride()}"
        width = sum(matrix.shape[0] for matrix, _ in layers[0].qkv)
        if width % (num_heads + 2 * num_kv_heads):
            return f"{width} rows for {num_heads} heads and {num_kv_heads} key-value heads"
        return None

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
        count, model = len(hidden), self._model
        hidden = hidden.to(torch.float32, copy=True).contiguous()
        cache = (model.num_layers, model.num_kv_heads, rotated.shape[2], self.head_dim)
        _check("hidden", hidden, (count, self.hidden_size), torch.float32)
        if rotated.dtype not in _DENSE_KINDS:
            raise ValueError(f"a cache of {rotated.dtype}; fp32, bf16 or fp16 is needed")
        for name, tensor in (("unrotated", unrotated), ("rotated", rotated), ("values", values)):
            _check(name, tensor, cache, rotated.dtype)
        _check("slots", slots, (count,), torch.int64)
        _check("row_positions", row_positions, (count,), torch.int64)
        _check("slot_positions", slot_positions, (num_rows,), torch.int64)
        _check("cos", cos, (count, cos.shape[-1]), torch.float32)
        _check("sin", sin, cos.shape, torch.float32)
        if 2 * cos.shape[-1] > self.head_dim:
            raise ValueError(f"{cos.shape[-1]} angles for heads of {self.head_dim}")
        if not 0 < num_rows <= rotated.shape[2]:
            raise ValueError(f"{num_rows} rows in a cache of {rotated.shape[2]} slots")
        if count and not (0 <= int(slots.min()) and int(slots.max()) < num_rows):
            raise ValueError(f"slots {slots.tolist()} are not all below {num_rows}")
        first = 0
        if layers is not None and len(layers) != model.num_layers:
            if not layers:
                return hidden
            model, first = self._part(layers), layers.start
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
            cache_kind=_DENSE_KINDS[rotated.dtype],
            rotary_half=cos.shape[-1],
        )
        if unseen is not None:
            num_marked = unseen.shape[-1]
            if num_marked > num_rows:
                raise ValueError(f"{num_marked} slots that may be unseen, of {num_rows}")
            _check("unseen", unseen, (count, num_marked), torch.bool)
            step.unseen, step.num_marked = unseen.data_ptr(), num_marked
        if skipped is not None:
            if len(skipped) != self._model.num_layers:
                raise ValueError(f"{len(skipped)} layers to skip of {self._model.num_layers}")
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

    def _part(self, layers: range) -> CModel:
        """Return some of the layers as a model of their own."""
        whole = self._model
        if layers.step != 1 or not 0 <= layers.start <= layers.stop <= whole.num_layers:
            raise ValueError(f"layers {layers} of {whole.num_layers}")
        part = CModel.from_buffer_copy(whole)
        part.layers = whole.layers + layers.start * ctypes.sizeof(CLayer)
        part.num_layers = len(layers)
        return part

    def logits(self, hidden: Tensor, head: Matrix | None = None) -> Tensor:
        """Return the (n, vocab_size) float32 logits of (n, hidden_size) last-layer outputs.

        Args:
            hidden: (n, hidden_size).
            head: rows of the head, (m, hidden_size), for the logits of so many tokens; None: all.
        """
        hidden = hidden.to(torch.float32).contiguous()
        _check("hidden", hidden, (len(hidden), self.hidden_size), torch.float32)
        model = self._model
        if head is not None:
            model = CModel.from_buffer_copy(model)
            model.head = _described(head)
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
        step.isa = ISAS.index(self._library.isa)
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

    def _vector(self, tensor: Tensor) -> int:
        """Keep a float32 copy, padded with zeros to a multiple of 32; return its address."""
        copy = functional.pad(tensor.float(), (0, -len(tensor) % 32)).contiguous()
        self._kept.append(copy)
        return copy.data_ptr()

    def _matrices(self, parts: Sequence[Linear], rows: list[int], columns: int) -> list[CMatrix]:
        """Describe matrices of so many rows that lie in one or in as many."""
        if len(parts) == 1:
            matrix, bias = parts[0]
            starts = [sum(rows[:index]) for index in range(len(rows))]
            parts = [
                (_rows(matrix, at, at + count), None if bias is None else bias[at : at + count])
                for at, count in zip(starts, rows, strict=True)
            ]
        found = [(matrix.shape[0], matrix.shape[1]) for matrix, _ in parts]
        if found != [(count, columns) for count in rows]:
            raise ValueError(f"matrices of {found}, wanted {rows} rows of {columns} columns")
        return [self._matrix(matrix, bias) for matrix, bias in parts]

    def _matrix(self, matrix: Matrix, bias: Tensor | None) -> CMatrix:
        self._kept.append(matrix)
        described = _described(matrix)
        described.bias = None if bias is None else self._vector(bias)
        return described


def _described(matrix: Matrix) -> CMatrix:
    """Return what the library reads a matrix by; it must be kept as long."""
    data = matrix.blocks if isinstance(matrix, BlockMatrix) else matrix
    is_dense = not isinstance(matrix, BlockMatrix)
    kind = _DENSE_KINDS[data.dtype] if is_dense else _BLOCK_KINDS[matrix.kind]
    rows, columns = matrix.shape
    return CMatrix(data.data_ptr(), None, rows, columns, data.stride(0) * data.element_size(), kind)


def _rows(matrix: Matrix, start: int, end: int) -> Matrix:
    if isinstance(matrix, BlockMatrix):
        return BlockMatrix(matrix.blocks[start:end], matrix.kind)
    return matrix[start:end]


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    is_wrong = tensor.shape != torch.Size(shape) or tensor.dtype != dtype
    if is_wrong or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}, wanted "
            f"{list(shape)} {dtype}, contiguous, on the CPU"
        )


def _torch_parallel() -> int:
    """Return the address of the `GOMP_parallel` that torch itself is linked against, or 0.

    A look-up in a library searches its dependencies too, whatever the wheel calls them.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
