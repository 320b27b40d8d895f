"""Rotary position tables: one inverse-frequency table per session, whatever the scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..wire.errors import ModelLoadError
from .config import ModelConfig, Rope


class RotaryTable:
    """Cosines and sines of every position up to a length.

    The angles are computed in float64 and rounded once to float32. The attention factor (YaRN's
    mscale, LongRoPE's) is multiplied in here and nowhere else; since turned keys always come from
    unrotated ones, it is never applied twice.

    Attributes:
        cos: (length, rotary_dim / 2) float32.
        sin: like `cos`.
        interleaved: how pairs lie in a head.
    """

    def __init__(
        self, config: ModelConfig, length: int, device: torch.device, rope: Rope | None = None
    ) -> None:
        """Build the table.

        Args:
            config: the model's shape.
            length: positions covered; also the length that pins dynamic NTK and LongRoPE, whose
                frequencies would otherwise change while cached keys do not.
            device: where the table lives.
            rope: what to rotate by; None does not rotate, its angles are 0 to the bit.

        Raises:
            ModelLoadError: the scaling is not known or lacks a parameter.
        """
        if rope is None:
            inverse, factor = torch.zeros(config.head_dim // 2, dtype=torch.float64), 1.0
        else:
            inverse, factor = inverse_frequencies(rope, config.max_positions, length)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * inverse
        self.cos: Tensor = (angles.cos() * factor).float().to(device)
        self.sin: Tensor = (angles.sin() * factor).float().to(device)
        self.interleaved = config.rope_interleaved

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, rotary_dim / 2) cosines and sines of (n,) int64 positions."""
        return self.cos[positions], self.sin[positions]


class RotaryTables:
    """The tables of a model's layers: one for each way to rotate that occurs.

    Attributes:
        tables: all of them, the first layer's first.
        number: which one each layer has, (num_layers,).
        runs: layers side by side that share one, and which, in order.
    """

    def __init__(self, config: ModelConfig, length: int, device: torch.device) -> None:
        """Build them; arguments as for `RotaryTable`."""
        ropes: list[Rope | None] = []
        number: list[int] = []
        for layer in range(config.num_layers):
            rope = config.rope(layer)
            if rope not in ropes:
                ropes.append(rope)
            number.append(ropes.index(rope))
        self.tables = [RotaryTable(config, length, device, rope) for rope in ropes]
        self.number = tuple(number)
        starts = [at for at in range(len(number)) if at == 0 or number[at] != number[at - 1]]
        ends = [*starts[1:], len(number)]
        self.runs = [
            (range(start, end), self.tables[number[start]])
            for start, end in zip(starts, ends, strict=True)
        ]

    def of(self, layer: int) -> RotaryTable:
        """Return a layer's."""
        return self.tables[self.number[layer]]

    def at(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return every table's (n, rotary_dim / 2) cosines and sines of (n,) int64 positions."""
        return [table.at(positions) for table in self.tables]


def inverse_frequencies(rope: Rope, max_positions: int, length: int) -> tuple[Tensor, float]:
    """Return the (rotary_dim / 2,) float64 inverse frequencies and the attention factor.

    Args:
        rope: the rotary parameters; `scaling` as in transformers' `modeling_rope_utils`.
        max_positions: as in `ModelConfig`.
        length: the sequence length that pins dynamic NTK and LongRoPE.

    Raises:
        ModelLoadError: the scaling is not known or lacks a parameter.

    Source: RoFormer 2104.09864 §3.2; position interpolation 2306.15595 §3.2; YaRN 2309.00071 §3;
    LongRoPE 2402.13753 §3; Llama 3 2407.21783 §3.4 and its published code.
    """
    scaling = rope.scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _SCALINGS:
        known = ", ".join(sorted(_SCALINGS))
        raise ModelLoadError(f"rotary scaling '{kind}' is not supported; known: {known}")
    try:
        found, factor = _SCALINGS[kind](scaling, rope.rotary_dim, rope.theta, max_positions, length)
    except KeyError as missing:
        raise ModelLoadError(f"rotary scaling '{kind}' lacks the parameter {missing}") from None
    if not (found.isfinite().all() and math.isfinite(factor)):
        raise ModelLoadError(f"rotary scaling '{kind}' gives no finite frequencies")
    return found, factor


def _plain(dim: int, base: float) -> Tensor:
    return base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _ntk_base(base: float, factor: float, dim: int) -> float:
    return base * factor ** (dim / (dim - 2))


def _default(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    return _plain(dim, base), 1.0


def _linear(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    return _plain(dim, base) / scaling["factor"], 1.0


def _ntk(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    return _plain(dim, _ntk_base(base, scaling["factor"], dim)), 1.0


def _dynamic(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    trained = scaling.get("original_max_position_embeddings") or max_positions
    factor = scaling["factor"]
    stretch = factor * max(length, trained) / trained - (factor - 1)
    return _plain(dim, _ntk_base(base, stretch, dim)), 1.0


def _llama3(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    inverse = _plain(dim, base)
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    # Waves shorter than trained/high stay, longer than trained/low are slowed, between is blended.
    blend = ((trained * inverse / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return inverse * (blend + (1 - blend) / factor), 1.0


def _yarn(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    factor = scaling["factor"]
    trained = scaling.get("original_max_position_embeddings") or max_positions
    inverse = _plain(dim, base)

    def dimension_of(rotations: float) -> float:
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(scaling.get("beta_fast") or 32)
    high = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if mscale and all_dim:
            attention = _mscale(factor, mscale) / _mscale(factor, all_dim)
        else:
            attention = _mscale(factor, 1.0)
    return inverse * (1 - slowed) + inverse / factor * slowed, attention


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    trained = scaling.get("original_max_position_embeddings") or max_positions
    factor = scaling.get("factor") or max_positions / trained
    chosen: Sequence[float] = scaling["long_factor" if length > trained else "short_factor"]
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return _plain(dim, base) / torch.tensor(chosen, dtype=torch.float64), attention


def _gguf_factors(
    scaling: dict[str, Any], dim: int, base: float, max_positions: int, length: int
) -> tuple[Tensor, float]:
    return _plain(dim, base) / torch.tensor(scaling["factors"], dtype=torch.float64), 1.0


_SCALINGS = {
    "default": _default,
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "gguf_factors": _gguf_factors,  # llama.cpp stores Llama 3's bands as a tensor of divisors
}
