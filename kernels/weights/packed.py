"""Weights of few bits in the layouts that the matmul kernels read; packed bit exact, in torch.

N is the number of output features (rows of the weight), K of input features (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BlockMatrix
from .linear import Matrix

# A program of the split kernels covers at least this many output features; each needs a lock.
_MIN_BLOCK_N = 16


@dataclass(frozen=True, slots=True)
class QuantWeight:
    """4- or 8-bit codes with a scale for every group of columns.

    A unit of 16 bytes (4 words, so 32 or 16 columns) is what one thread loads at once.

    8 bits: word i of a unit holds its columns 4i to 4i + 3, the first in the lowest bits.

    4 bits: a word holds eight neighbouring columns, 16 bytes of activations: column 2q + b of them
    in bits 4q + 16b to 4q + 16b + 3, so that one mask leaves a pair of neighbours, 16 bits apart.
    Columns are dealt as a tensor core's operand is to threads: word i of unit t of a span, `span`
    units, holds columns 8 (span * i + t) to 8 (span * i + t) + 7. In a span of four, 128 columns,
    word i so belongs to the i-th group of 32.

    Attributes:
        words: (N, K * bits / 32) int32.
        scales: (N, K / group), float; value = scale * (code - 2 ** (bits - 1)), or with minimums
            scale * code + minimum.
        minimums: like `scales`, or None if the codes are symmetric.
        bits: 4 or 8.
        group: columns that share a scale; K itself for one scale per output feature.
        locks: int32 zeros, one for each tile of a split sum; the kernels leave them zero. Two
            launches at the same time on one weight would share them: one stream owns a weight.
    """

    words: Tensor
    scales: Tensor
    minimums: Tensor | None
    bits: int
    group: int
    locks: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[0], self.words.shape[1] * (32 // self.bits)

    @property
    def span(self) -> int:
        """Units of a span: 4 for 4 bits if groups, their fp16 scales and K let it, else 1."""
        return _span(self.bits, self.shape[1], self.group, self.scales.dtype)

    @property
    def num_bytes(self) -> int:
        """What one product reads of it."""
        parts = (self.words, self.scales, self.minimums)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def at(self, index: Tensor | slice) -> QuantWeight:
        """Return rows, at (n,) int64 or of a slice, to take values of: locks stay the whole's."""
        minimums = None if self.minimums is None else self.minimums[index]
        return QuantWeight(
            self.words[index], self.scales[index], minimums, self.bits, self.group, self.locks
        )

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the (N, K) values, rounded once from float32."""
        values = unpack_codes(self).float()
        if self.minimums is None:
            values -= 2 ** (self.bits - 1)
        groups = values.view(len(values), -1, self.group) * self.scales.float()[..., None]
        if self.minimums is not None:
            groups += self.minimums.float()[..., None]
        return groups.flatten(1).to(dtype)

    def to(self, device: torch.device | str) -> QuantWeight:
        """Return it on another device."""
        minimums = None if self.minimums is None else self.minimums.to(device)
        return QuantWeight(
            self.words.to(device),
            self.scales.to(device),
            minimums,
            self.bits,
            self.group,
            self.locks.to(device),
        )


@dataclass(frozen=True, slots=True)
class BitWeight:
    """Weights of 2 to 8 bits as bit planes, bipolar-INT: symmetric without zero points.

    Code u, the sum of bit_i * 2 ** i, stands for the sum of (2 * bit_i - 1) * 2 ** i, the odd
    integer 2u - (2 ** bits - 1). Plane i holds bit i of every code, 32 columns to a word. Where in
    the word is chosen so that masking and joining the planes, without a shift, yields whole codes
    `spacing` apart: column f of a word sits at bit spacing * (f % p) + f // p + i, modulo 32, with
    p = 32 / spacing. Every plane is so rotated by its own number.

    Attributes:
        planes: (bits, N, K / 32) int32.
        scales: (N, K / group), float; value = scale * (2 * code - (2 ** bits - 1)).
        bits: 2 to 8.
        group: columns that share a scale; K itself for one scale per output feature.
        locks: as in QuantWeight.

    Source: "Efficient Arbitrary Precision Acceleration for LLMs on GPU Tensor Cores", arXiv
    2409.17870, section 3 (the format); the order inside a word is ours.
    """

    planes: Tensor
    scales: Tensor
    bits: int
    group: int
    locks: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.planes.shape[1], self.planes.shape[2] * 32

    @property
    def num_bytes(self) -> int:
        """What one product reads of it."""
        return sum(part.numel() * part.element_size() for part in (self.planes, self.scales))

    def to(self, device: torch.device | str) -> BitWeight:
        """Return it on another device."""
        planes, scales = self.planes.to(device), self.scales.to(device)
        return BitWeight(planes, scales, self.bits, self.group, self.locks.to(device))


RowSource = Matrix | QuantWeight  # what rows are taken of


def pack_gguf(matrix: BlockMatrix) -> QuantWeight:
    """Repack a matrix of GGUF blocks without touching a value."""
    codes, scales, minimums = matrix.parts()
    return pack_codes(codes, scales, minimums, 8 if matrix.kind == "Q8_0" else 4)


def pack_codes(
    codes: Tensor, scales: Tensor, minimums: Tensor | None = None, bits: int = 4
) -> QuantWeight:
    """Pack codes; `unpack_codes` returns them.

    Args:
        codes: (N, K) uint8 below 2 ** bits; K a multiple of 128 / bits.
        scales: (N, K / group) fp16, bf16 or fp32; value = scale * (code - 2 ** (bits - 1)).
        minimums: like `scales`: value = scale * code + minimum.
        bits: 4 or 8.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if bits not in (4, 8):
        raise ValueError(f"{bits} bits; pack_codes takes 4 or 8, pack_planes 2 to 8")
    group = _group(codes, scales, 128 // bits)
    if minimums is not None:
        if minimums.shape != scales.shape or minimums.dtype != scales.dtype:
            raise ValueError(f"minimums are {_told(minimums)}, scales {_told(scales)}")
    packed = codes
    if bits == 4:  # span, i, t, q, b to span, t, i, b, q: two codes a byte
        span = _span(bits, codes.shape[1], group, scales.dtype)
        nibbles = codes.reshape(codes.shape[0], -1, 4, span, 4, 2).permute(0, 1, 3, 2, 5, 4)
        packed = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    words = packed.reshape(codes.shape[0], -1).contiguous().view(torch.int32)
    # Kernels go by rows, and read a span's scales as one integer, at a multiple of its size.
    scales, minimums = _own(scales), None if minimums is None else _own(minimums)
    return QuantWeight(words, scales, minimums, bits, group, _locks(codes))


def unpack_codes(weight: QuantWeight) -> Tensor:
    """Return the (N, K) uint8 codes of a packed weight."""
    packed = weight.words.view(torch.uint8)
    if weight.bits == 8:
        return packed.clone()
    nibbles = torch.stack([packed & 15, packed >> 4], -1)
    nibbles = nibbles.reshape(packed.shape[0], -1, weight.span, 4, 2, 4)  # span, t, i, b, q
    return nibbles.permute(0, 1, 3, 2, 5, 4).flatten(1)


def pack_planes(codes: Tensor, scales: Tensor, bits: int) -> BitWeight:
    """Pack codes as bit planes; `unpack_planes` returns them.

    Args:
        codes: (N, K) uint8 below 2 ** bits; K a multiple of 32.
        scales: (N, K / group) float; value = scale * (2 * code - (2 ** bits - 1)).
        bits: 2 to 8.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if bits not in range(2, 9):
        raise ValueError(f"{bits} bits; bit planes are made for 2 to 8")
    group = _group(codes, scales, 32)
    fields = codes.reshape(codes.shape[0], -1, 32)
    planes = []
    for plane in range(bits):
        at = _positions(bits, plane).to(codes.device, torch.int32)
        # Each of a word's bits is set once, so that their sum is the word, its sign bit too.
        bit = (fields >> plane & 1).to(torch.int32)
        planes.append(bit.bitwise_left_shift_(at).sum(-1, dtype=torch.int32))
    return BitWeight(torch.stack(planes), scales, bits, group, _locks(codes))


def unpack_planes(weight: BitWeight) -> Tensor:
    """Return the (N, K) uint8 codes of bit planes."""
    codes = torch.zeros(
        *weight.planes.shape[1:], 32, dtype=torch.uint8, device=weight.planes.device
    )
    for plane, words in enumerate(weight.planes):
        at = _positions(weight.bits, plane).to(words.device)
        codes |= (words.long()[..., None] >> at & 1).to(torch.uint8) << plane
    return codes.flatten(1)


def plane_spacing(bits: int) -> int:
    """Return the smallest power of two that holds a code: how far apart joined codes lie."""
    return 1 << (bits - 1).bit_length()


def quantize_groups(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> QuantWeight:
    """Round a matrix to the nearest codes, with fp16 scales.

    Args:
        weight: (N, K) float.
        bits: 4 or 8.
        group: columns that share a scale, a divisor of K; K for one scale per output feature.
        symmetric: codes around zero; otherwise between each group's minimum and maximum.
    """
    parts = weight.float().reshape(weight.shape[0], -1, group)
    top = 2**bits - 1
    if symmetric:
        half = 2 ** (bits - 1)
        scales = (parts.abs().amax(-1) / (half - 1)).half()
        codes = (parts / _divisor(scales)).round().clamp(-half, half - 1) + half
        minimums = None
    else:
        minimums = parts.amin(-1).half()
        scales = ((parts.amax(-1) - minimums.float()) / top).half()
        codes = ((parts - minimums.float()[..., None]) / _divisor(scales)).round().clamp(0, top)
    return pack_codes(codes.to(torch.uint8).flatten(1), scales, minimums, bits)


def quantize_planes(weight: Tensor, bits: int, group: int) -> BitWeight:
    """Round a matrix to the nearest bipolar codes, with fp16 scales; arguments as above."""
    parts = weight.float().reshape(weight.shape[0], -1, group)
    top = 2**bits - 1
    scales = (parts.abs().amax(-1) / top).half()
    codes = (parts / _divisor(scales)).add_(top).div_(2).round_().clamp_(0, top).to(torch.uint8)
    return pack_planes(codes.flatten(1), scales, bits)


def joined_planes(pieces: list[BitWeight]) -> BitWeight:
    """Return weights of equal K, bits and groups one below the other."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    planes = torch.cat([piece.planes for piece in pieces], 1)
    scales = torch.cat([piece.scales for piece in pieces])
    return BitWeight(planes, scales, first.bits, first.group, _locks(scales))


def _own(scales: Tensor) -> Tensor:
    is_aligned = scales.is_contiguous() and scales.data_ptr() % 16 == 0
    return scales if is_aligned else scales.clone(memory_format=torch.contiguous_format)


def _divisor(scales: Tensor) -> Tensor:
    """Return scales as they are stored, 1 where a group is all zeros."""
    return torch.where(scales == 0, 1, scales).float()[..., None]


def _positions(bits: int, plane: int) -> Tensor:
    spacing = plane_spacing(bits)
    column = torch.arange(32)
    per_word = 32 // spacing
    return (spacing * (column % per_word) + column // per_word + plane) % 32


def _span(bits: int, num_in: int, group: int, scales: torch.dtype) -> int:
    fits = num_in % 128 == 0 and (group in (32, 64) or group % 128 == 0)
    return 4 if bits == 4 and fits and scales == torch.float16 else 1


def _group(codes: Tensor, scales: Tensor, unit: int) -> int:
    """Return how many columns share a scale, after checking that all fits."""
    if codes.ndim != 2 or codes.dtype != torch.uint8 or not codes.numel():
        raise ValueError(f"codes are (N, K) uint8, not {_told(codes)}")
    rows, columns = codes.shape
    if columns % unit:
        raise ValueError(f"{columns} columns are no multiple of {unit}; pad the weight with zeros")
    if scales.ndim != 2 or scales.shape[0] != rows or not scales.is_floating_point():
        raise ValueError(f"scales are (N, K / group) float, not {_told(scales)}, for {rows} rows")
    group, rest = divmod(columns, max(scales.shape[1], 1))
    if not scales.shape[1] or rest or group % unit:
        raise ValueError(
            f"{scales.shape[1]} scales for {columns} columns: groups are multiples of {unit}"
        )
    return group


def _locks(of_rows: Tensor) -> Tensor:
    count = -(-of_rows.shape[0] // _MIN_BLOCK_N)
    return torch.zeros(count, dtype=torch.int32, device=of_rows.device)


def _told(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
