"""Projections on the CPU: the path that serves a product is chosen by its number of rows.

Few rows read 4-bit weights, which is all that counts there; more rows multiply in the layer's dtype
with weights that oneDNN has put in its own order once. Within a path a row's bits do not depend on
the rows beside it; only where oneDNN is missing, MKL may sum many rows otherwise. Left out: torch's
8-bit products, since `_weight_int8pack_mm` has one scale per output feature, where Q8_0 has one per
32 columns, and dynamic quantisation lets a row depend on its neighbours. Where `cpu_step` is there,
few rows never come here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..weights.blocks import BlockMatrix
from ..weights.linear import FEW_ROWS, Matrix, values_of, with_exact_top
from ..weights.threads import one_thread

# Up to how many rows torch's 4-bit product beats the dense one, by what the CPU has. It takes four
# rows at a time, so the fifth costs as much as the first four. Measured on a Zen 5, with lesser
# CPUs imitated by ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, 3072 x 576 on one thread, us of the
# 4-bit against the dense product at 1, 4, 8 and 12 rows:
#   bfloat16     103 / 381,  210 / 781,  676 / 660,  862 / 732
#   AVX512       111 / 1383, 210 / 897,  770 / 1319, 585 / 1488
#   AVX2         236 / 1627, 953 / 2421, 1174 / 3054, 1202 / 3625
# Other CPUs have no kernel for it, only a slow reference.
_MAX_INT4_ROWS = {"bfloat16": 4, "AVX512": 12, "AVX2": 12}
# What the 4-bit op asks of N.
_INT4_FEATURES = 16
_GROUP = 32
_HINT_ROWS = 64
# Features unpacked at a time: whole tiles of the 4-bit op.
_INT4_PIECE = 64
# oneDNN sums one row of some widths (K 1536 in float32, 8960 in bfloat16) in another order than two
# and more, so it is given company. MKL, which serves float32 where oneDNN is missing, differs at 1
# to 3 rows from 4 and more; with several threads, or on processors with AMX, also at 18 and more.
_MIN_PREPACKED_ROWS = 2
_MIN_PLAIN_ROWS = 4


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """What serves which number of rows.

    Attributes:
        dtype: of the dense product: bfloat16 or float32.
        max_int4_rows: up to so many rows 4-bit weights are multiplied as they are; 0: never.
        is_prepacked: whether oneDNN orders the dense weights; else `functional.linear` does.
        why: in words, for `keyturn doctor`.
    """

    dtype: torch.dtype
    max_int4_rows: int
    is_prepacked: bool
    why: str


def choose_plan(
    dtype: torch.dtype, *, capability: str | None = None, has_bfloat16: bool | None = None
) -> CpuPlan:
    """Return what this CPU, or one that is described, does best.

    Args:
        dtype: of the dense product, bfloat16 or float32. With float32, the reference, 4-bit
            products are left out: they round activations and scales to bfloat16.
        capability: "AVX512", "AVX2" or "DEFAULT", as torch calls them; None asks torch.
        has_bfloat16: whether the CPU multiplies in bfloat16; None asks torch.
    """
    is_this = capability is None
    capability = capability or torch.backends.cpu.get_cpu_capability()
    if has_bfloat16 is None:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    few = 0
    if dtype == torch.bfloat16:
        few = _MAX_INT4_ROWS.get("bfloat16" if has_bfloat16 else capability, 0)
    is_prepacked = (
        torch.backends.mkldnn.is_available()
        and capability in _MAX_INT4_ROWS
        # oneDNN refuses bfloat16 below AVX-512, and where its environment keeps it from that.
        and (
            dtype == torch.float32
            or (capability == "AVX512" and (not is_this or _orders_bfloat16()))
        )
    )
    how = "ordered by oneDNN" if is_prepacked else "as torch multiplies them"
    short = str(dtype).removeprefix("torch.")
    why = f"{capability}: {f'4-bit up to {few} rows, then ' if few else ''}{short} {how}"
    return CpuPlan(dtype, few, is_prepacked, why)


def _orders_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class CpuLinear:
    """A projection on the CPU; attributes as in `Linear`.

    Nothing is packed before the first product that needs it. A dense matrix that is packed is not
    kept beside it.
    """

    def __init__(self, matrix: Matrix, bias: Tensor | None, plan: CpuPlan) -> None:
        """Take the matrix (N, K), the bias (N,) and what `choose_plan` says."""
        self.num_out, self.num_in = matrix.shape
        has_int4 = (
            isinstance(matrix, BlockMatrix)
            and matrix.kind in ("Q4_0", "Q4_1")
            and self.num_out % _INT4_FEATURES == 0
        )
        self._max_int4_rows = plan.max_int4_rows if has_int4 else 0
        self._plan = plan
        self._matrix: Matrix | None = matrix
        self._bias = None if bias is None else bias.to(plan.dtype)
        self._dense: Tensor | None = None
        self._int4: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says; what is returned in float32 was rounded to `x.dtype`."""
        product = self._product(x.reshape(-1, self.num_in))
        return product.to(out_dtype or x.dtype).view(*x.shape[:-1], self.num_out)

    def _product(self, rows: Tensor) -> Tensor:
        count = len(rows)
        if count <= self._max_int4_rows:
            codes, scales = self._int4_weight()
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, codes, _GROUP, scales)
            return product if self._bias is None else product + self._bias
        weight = self._dense_weight()
        if self._plan.is_prepacked:
            rows = _with_company(rows, _MIN_PREPACKED_ROWS)
            op = torch.ops.mkldnn._linear_pointwise
            return op(rows, weight, self._bias, "none", [], "")[:count]
        if rows.dtype == torch.float32:
            rows = _with_company(rows, _MIN_PLAIN_ROWS)
        return functional.linear(rows, weight, self._bias)[:count]

    def _dense_weight(self) -> Tensor:
        if self._dense is None:
            assert self._matrix is not None
            with one_thread():
                dense = values_of(self._matrix, self._plan.dtype)
                if self._plan.is_prepacked:
                    # The number of rows is a hint: the order is the same for all.
                    dense = torch.ops.mkldnn._reorder_linear_weight(dense, _HINT_ROWS)
            self._dense = dense
            if isinstance(self._matrix, Tensor):
                self._matrix = None
            return dense
        return self._dense

    def _int4_weight(self) -> tuple[Tensor, Tensor]:
        """Return the codes in torch's order, and (K / 32, N, 2) scales and zeros in bfloat16.

        The op's value is (code - 8) * scale + zero. The codes stay what they are; the scales go
        from fp16 to bfloat16, as much rounding as dense bfloat16 weights have.
        """
        if self._int4 is None:
            assert isinstance(self._matrix, BlockMatrix)
            packed = torch.empty(self.num_out, self.num_in // 2, dtype=torch.uint8)
            scales = torch.empty(self.num_in // _GROUP, self.num_out, 2, dtype=torch.bfloat16)
            with one_thread():
                for start in range(0, self.num_out, _INT4_PIECE):
                    at = slice(start, min(start + _INT4_PIECE, self.num_out))
                    piece = BlockMatrix(self._matrix.blocks[at], self._matrix.kind)
                    codes, scale, minimum = piece.parts()
                    packed[at] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
                    scales[:, at, 0] = scale.T
                    zero = 8 * scale.float().T
                    scales[:, at, 1] = 0 if minimum is None else zero + minimum.float().T
            self._int4 = packed, scales
        return self._int4


class CpuHead(CpuLinear):
    """The projection to logits: float32 outputs that greedy decoding can compare."""

    def __init__(self, matrix: Matrix, plan: CpuPlan) -> None:
        """Take the matrix (vocab_size, hidden_size) and what `choose_plan` says."""
        super().__init__(matrix, None, plan)
        self._exact = matrix

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply, as `Linear` says.

        For few rows only the 64 largest outputs of a row are exact to float32, the others carry the
        rounding of `x.dtype`.
        """
        if out_dtype is None or out_dtype == x.dtype:
            return super().__call__(x)
        if len(x) > FEW_ROWS:
            return functional.linear(x.to(out_dtype), values_of(self._exact, out_dtype))
        return with_exact_top(super().__call__(x, out_dtype), x, self._exact)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Let a gate's values through; `layer.reference.silu_mul` with two roundings instead of one.

    In bf16 the way through float32 takes three times as long, 5 % of a prefill.
    """
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def _with_company(rows: Tensor, count: int) -> Tensor:
    """Repeat the last row until there are so many."""
    if len(rows) >= count:
        return rows
    return torch.cat([rows, rows[-1:].expand(count - len(rows), -1)])
