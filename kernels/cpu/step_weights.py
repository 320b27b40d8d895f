"""A model's weights as the C step is given them, and as it reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..weights.blocks import BlockMatrix
from ..weights.linear import Matrix
from ..weights.low_rank import FusedUpdate
from .c_types import CLayer, CMatrix, CModel, CUpdate

# The order of the enums in cpu_step_types.h.
DENSE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BLOCK_KINDS = {"Q4_0": 3, "Q4_1": 4, "Q8_0": 5}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")  # of `activation` there
_PANEL = 16

# A matrix (N, K) and its bias (N,), or None.
Linear = tuple[Matrix, Tensor | None]


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


class StepWeights:
    """All layers and the head of one model as the C library reads them.

    Attributes:
        hidden_size: of the stream between layers.
        head_dim: of queries, keys and values.
        model: what the library is handed.
    """

    def __init__(
        self,
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
        self._kept: list[object] = []
        self._updates: list[object] = []
        passing = ("gate", "up") if is_gated else ("up",)
        # By the fields of `StepLayer`: where the first factors go, and the matrices.
        self._updated = {
            "qkv": ("qkv_shrink", ("queries", "keys", "values")),
            "output": ("output_shrink", ("output",)),
            "gate_up": ("mlp_shrink", passing),
            "down": ("down_shrink", ("down",)),
        }
        num_projected = num_heads + 2 * num_kv_heads
        width = sum(matrix.shape[0] for matrix, _ in layers[0].qkv)
        self.hidden_size: int = layers[0].attention_norm.shape[0]
        self.head_dim: int = width // num_projected
        inner = layers[0].down[0].shape[1]
        heads = [count * self.head_dim for count in (num_heads, num_kv_heads, num_kv_heads)]
        self._layers = (CLayer * len(layers))()
        for at, layer in zip(self._layers, layers, strict=True):
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
        self.model = CModel(
            ctypes.addressof(self._layers),
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
            0,
            eps,
        )

    @staticmethod
    def obstacle(
        layers: Sequence[StepLayer], head: Matrix, *, num_heads: int, num_kv_heads: int
    ) -> str | None:
        """Return in words what the library cannot read of these weights; None: it reads them all.

        Args:
            layers: all decoder layers; as above, and so are the others.
            head: of the model.
            num_heads: of the queries.
            num_kv_heads: of the keys and values.
        """
        if not layers:
            return "no layers"
        for matrix, _ in [(head, None), *(each for layer in layers for each in layer.linears())]:
            data = matrix.blocks if isinstance(matrix, BlockMatrix) else matrix
            if not isinstance(matrix, BlockMatrix) and data.dtype not in DENSE_KINDS:
                return f"a matrix of {data.dtype}; GGUF blocks, fp32, bf16 or fp16 is needed"
            if data.device.type != "cpu" or data.stride(-1) != 1:
                return f"a matrix on {data.device} with strides {data.stride()}"
        width = sum(matrix.shape[0] for matrix, _ in layers[0].qkv)
        if width % (num_heads + 2 * num_kv_heads):
            return f"{width} rows for {num_heads} heads and {num_kv_heads} key-value heads"
        return None

    def part(self, layers: range) -> CModel:
        """Return some of the layers as a model of their own.

        Raises:
            ValueError: they are not a few of these layers in a row.
        """
        whole = self.model
        if layers.step != 1 or not 0 <= layers.start <= layers.stop <= whole.num_layers:
            raise ValueError(f"layers {layers} of {whole.num_layers}")
        part = CModel.from_buffer_copy(whole)
        part.layers = whole.layers + layers.start * ctypes.sizeof(CLayer)
        part.num_layers = len(layers)
        return part

    def with_head(self, head: Matrix) -> CModel:
        """Return the model with another head, which must be kept as long."""
        model = CModel.from_buffer_copy(self.model)
        model.head = _described(head)
        return model

    def adapt(self, updates: Sequence[Mapping[str, FusedUpdate]]) -> None:
        """Take low-rank updates; arguments and errors as for `CpuStep.adapt`."""
        given = [*updates] or [{}] * len(self._layers)
        found = [
            (layer, shrink, names, of_layer.get(field))
            for layer, of_layer in zip(self._layers, given, strict=True)
            for field, (shrink, names) in self._updated.items()
        ]
        for layer, _, names, update in found:
            if update is not None:
                _refuse_misfits(update, [getattr(layer, name) for name in names])
        kept: list[object] = []
        for layer, shrink, names, update in found:
            setattr(layer, shrink, CMatrix() if update is None else _described(update.down))
            ups = [None] * len(names) if update is None else update.ups
            first = 0
            for name, up in zip(names, ups, strict=True):
                matrix = getattr(layer, name)
                if up is None or not up.shape[1]:
                    matrix.update = None
                    continue
                panels = _panels(up)
                rank, kind = up.shape[1], DENSE_KINDS[up.dtype]
                native = CUpdate(panels.data_ptr(), rank, kind, first)
                matrix.update = ctypes.addressof(native)
                kept += [panels, native]
                first += rank
            kept.append(update)
        self._updates = kept
        widths = (len(update.down) for *_, update in found if update is not None)
        self.model.shrunk_width = max(widths, default=0)

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
    kind = DENSE_KINDS[data.dtype] if is_dense else _BLOCK_KINDS[matrix.kind]
    rows, columns = matrix.shape
    row_bytes = data.stride(0) * data.element_size()
    return CMatrix(data.data_ptr(), None, None, rows, columns, row_bytes, kind)


def _rows(matrix: Matrix, start: int, end: int) -> Matrix:
    if isinstance(matrix, BlockMatrix):
        return BlockMatrix(matrix.blocks[start:end], matrix.kind)
    return matrix[start:end]


def _panels(up: Tensor) -> Tensor:
    """Return an (N, R) factor as (N / 16, R, 16): what 16 features are multiplied by lies in a row.

    What is missing of the last 16 is zeros.
    """
    padded = functional.pad(up, (0, 0, 0, -len(up) % _PANEL))
    return padded.view(-1, _PANEL, up.shape[1]).transpose(1, 2).contiguous()


def _refuse_misfits(update: FusedUpdate, matrices: Sequence[CMatrix]) -> None:
    found = [tuple(factor.shape) for factor in (update.down, *update.ups)]
    ranks = [up.shape[1] for up in update.ups]
    wanted = [(sum(ranks), matrices[0].columns)]
    wanted += [(matrix.rows, rank) for matrix, rank in zip(matrices, ranks, strict=False)]
    if found != wanted or len(ranks) != len(matrices):
        raise ValueError(f"factors of {found} for {len(matrices)} matrices, wanted {wanted}")
    for factor in (update.down, *update.ups):
        if factor.dtype not in DENSE_KINDS or factor.device.type != "cpu":
            raise ValueError(f"a factor of {factor.dtype} on {factor.device}")
