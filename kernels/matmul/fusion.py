"""What a matrix-vector product does on the way in and out, so that a decode step is few launches.

At one row a launch costs about as long as reading six megabytes of weights, and every product of a
layer is preceded or followed by something small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Where the keys and values of a layer's new rows go, and how queries and keys are rotated.

    Attributes:
        unrotated: (num_kv_heads, num_slots, head_dim), one layer of the cache, written at `slots`.
        rotated: the same.
        values: the same.
        slots: (rows,) int64.
        positions: (rows,) int64.
        cos: (length, rotary_dim / 2) float32, the table of all positions.
        sin: like `cos`.
        interleaved: as in `reference.apply_rotary`.
    """

    unrotated: Tensor
    rotated: Tensor
    values: Tensor
    slots: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Fusion:
    """What surrounds y = x @ weight.T + bias. All of it is float32; what is stored is rounded once.

    Attributes:
        gain: (K,) weight of the RMSNorm that x passes first, or None. The normed row is not
            rounded: it never exists, the product of `x * gain` is scaled instead.
        eps: of that norm.
        gated: the first half of y is a gate and the second half passes it: silu(gate) * up.
        residual: (rows, N) added to y, or None.
        cache: y is queries, keys and values in the order of `reference.write_rows`; keys and
            values are stored there and the rotated queries are the result. Both are rounded to the
            cache's dtype before they are rotated: a key turned later is then the key written now.
    """

    gain: Tensor | None = None
    eps: float = 0.0
    gated: bool = False
    residual: Tensor | None = None
    cache: CacheRows | None = None

    def new_output(self, x: Tensor, num_out: int, out_dtype: torch.dtype | None) -> Tensor:
        """Return an empty result for (rows, K) activations and (num_out, K) weights, after checks.

        Raises:
            ValueError: shapes, dtypes or memory layout do not fit.
        """
        rows, num_in = x.shape
        dtype = out_dtype or x.dtype
        if self.gain is not None and (
            self.gain.shape != (num_in,) or not self.gain.is_contiguous()
        ):
            raise ValueError(f"gain {list(self.gain.shape)} for {num_in} input features")
        if self.gated + (self.residual is not None) + (self.cache is not None) > 1:
            raise ValueError("gated, residual and cache exclude each other")
        if self.gated and num_out % 2:
            raise ValueError(f"a gate and what passes it are {num_out} output features")
        if self.residual is not None and (
            self.residual.shape != (rows, num_out) or not self.residual.is_contiguous()
        ):
            raise ValueError(f"residual {list(self.residual.shape)} must be [{rows}, {num_out}]")
        if self.cache is not None:
            return self._new_queries(x, num_out, dtype, self.cache)
        return x.new_empty(rows, num_out // 2 if self.gated else num_out, dtype=dtype)

    def arguments(self, out: Tensor) -> dict[str, Any]:
        """Return what a kernel is launched with; pointers that it will not follow are `out`'s."""
        arguments = {
            "gain": out if self.gain is None else self.gain,
            "residual": out if self.residual is None else self.residual,
            "eps": self.eps,
            "NORM": self.gain is not None,
            "GATED": self.gated,
            "HAS_RESIDUAL": self.residual is not None,
        }
        if self.cache is None:
            pointers = ("unrotated", "rotated", "values", "slots", "positions", "cos", "sin")
            none = {"num_slots": 0, "NUM_HEADS": 0, "NUM_KV_HEADS": 0, "HEAD_DIM": 0, "HALF": 0}
            return arguments | dict.fromkeys(pointers, out) | none | {"INTERLEAVED": False}
        to = self.cache
        num_kv_heads, num_slots, head_dim = to.rotated.shape
        return arguments | {
            "unrotated": to.unrotated,
            "rotated": to.rotated,
            "values": to.values,
            "slots": to.slots,
            "positions": to.positions,
            "cos": to.cos,
            "sin": to.sin,
            "num_slots": num_slots,
            "NUM_HEADS": out.shape[1],
            "NUM_KV_HEADS": num_kv_heads,
            "HEAD_DIM": head_dim,
            "HALF": to.cos.shape[1],
            "INTERLEAVED": to.interleaved,
        }

    @staticmethod
    def _new_queries(x: Tensor, num_out: int, dtype: torch.dtype, to: CacheRows) -> Tensor:
        num_kv_heads, _, head_dim = to.rotated.shape
        num_heads = num_out // head_dim - 2 * num_kv_heads
        caches = (to.unrotated, to.rotated, to.values)
        if num_out % head_dim or num_heads < 0 or head_dim % 2:
            raise ValueError(f"{num_out} output features for heads of {head_dim}")
        if any(part.shape != to.rotated.shape or part.dtype != dtype for part in caches):
            raise ValueError(f"caches must be alike and {dtype}")
        if 2 * to.cos.shape[1] > head_dim or to.cos.shape != to.sin.shape:
            raise ValueError(f"angles {list(to.cos.shape)} for heads of {head_dim}")
        for part in (to.slots, to.positions):
            if part.shape != x.shape[:1] or part.dtype != torch.int64:
                raise ValueError(f"slots and positions must be {len(x)} int64")
        if not all(part.is_contiguous() for part in (*caches, to.cos, to.sin)):
            raise ValueError("caches and angles must be contiguous")
        return x.new_empty(len(x), num_heads, head_dim, dtype=dtype)


PLAIN = Fusion()
