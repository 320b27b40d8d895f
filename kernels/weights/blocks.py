"""Matrices as a GGUF file stores them, in blocks of 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of one block, and its number of bytes before the codes: d, and for Q4_1 also m, in fp16.
GGUF_BLOCKS = {"Q4_0": (18, 2), "Q4_1": (20, 4), "Q8_0": (34, 2)}
GGUF_GROUP = 32
# Dequantised at a time on the CPU: a whole embedding at once takes gigabytes of temporaries, and
# from 32,768 values on torch works with several threads, which wait for each other for seconds when
# the machine is busy.
_PIECE_VALUES = 32_768 - 256


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix in the blocks of a GGUF file: what every packed layout is made from.

    Attributes:
        blocks: (N, bytes of a row) uint8, as in the file, and as a rule still mapped from it.
        kind: "Q4_0", "Q4_1" or "Q8_0": blocks of 32 columns.

    Raises:
        ValueError: another kind, or rows that are no whole number of blocks.
    """

    blocks: Tensor
    kind: str

    def __post_init__(self) -> None:
        """Check the blocks."""
        if self.kind not in GGUF_BLOCKS:
            known = ", ".join(GGUF_BLOCKS)
            raise ValueError(f"GGUF format {self.kind} is not one of {known}; dequantise")
        size, _ = GGUF_BLOCKS[self.kind]
        if self.blocks.ndim != 2 or self.blocks.dtype != torch.uint8 or self.blocks.shape[1] % size:
            raise ValueError(
                f"{self.kind} blocks are (N, multiple of {size}) uint8, not "
                f"{list(self.blocks.shape)} {self.blocks.dtype}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        size, _ = GGUF_BLOCKS[self.kind]
        return self.blocks.shape[0], self.blocks.shape[1] // size * GGUF_GROUP

    @staticmethod
    def row_bytes(kind: str, num_columns: int) -> int:
        """Return the bytes of a row of so many columns, a multiple of 32."""
        return num_columns // GGUF_GROUP * GGUF_BLOCKS[kind][0]

    def to(self, device: torch.device | str) -> BlockMatrix:
        """Return it on another device."""
        return BlockMatrix(self.blocks.to(device), self.kind)

    def scaled(self, factor: float) -> BlockMatrix:
        """Return it with all values multiplied; each block's scale is rounded to fp16 once more."""
        size, head = GGUF_BLOCKS[self.kind]
        blocks = self.blocks.clone()
        scales = blocks.view(len(blocks), -1, size)[..., :head]
        halves = scales.contiguous().view(torch.float16)
        scales.copy_((halves.float() * factor).to(torch.float16).view(torch.uint8))
        return BlockMatrix(blocks, self.kind)

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes (N, K) uint8, scales and, for Q4_1, minimums (N, K / 32) fp16.

        value = scale * (code - 2 ** (bits - 1)), or with minimums scale * code + minimum.
        """
        size, head = GGUF_BLOCKS[self.kind]
        rows = self.blocks.reshape(self.blocks.shape[0], -1, size)
        halves = rows[..., :head].contiguous().view(torch.float16)
        codes = rows[..., head:]
        if self.kind == "Q8_0":
            codes = codes ^ 0x80  # int8 to its value + 128
        else:  # column i in the low half of byte i, column i + 16 in the high half
            codes = torch.cat([codes & 15, codes >> 4], -1)
        minimums = halves[..., 1].contiguous() if self.kind == "Q4_1" else None
        return codes.flatten(1), halves[..., 0].contiguous(), minimums

    def at(self, index: Tensor | slice) -> BlockMatrix:
        """Return the rows at (n,) int64, or of a slice."""
        return BlockMatrix(self.blocks[index], self.kind)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the (N, K) values, rounded once from float32."""
        if self.blocks.is_cuda:
            return self._values().to(dtype)
        out = torch.empty(self.shape, dtype=dtype)
        step = max(1, _PIECE_VALUES // self.shape[1])
        for piece, blocks in zip(out.split(step), self.blocks.split(step), strict=True):
            piece.copy_(BlockMatrix(blocks, self.kind)._values())
        return out

    def _values(self) -> Tensor:
        size, head = GGUF_BLOCKS[self.kind]
        rows = self.blocks.reshape(self.blocks.shape[0], -1, size)
        halves = rows[..., :head].contiguous().view(torch.float16).float()
        codes = rows[..., head:]
        shape = (*rows.shape[:2], GGUF_GROUP)
        groups = torch.empty(shape, dtype=torch.float32, device=self.blocks.device)
        if self.kind == "Q8_0":
            groups.copy_(codes.view(torch.int8))
        else:
            groups[..., :16], groups[..., 16:] = codes & 15, codes >> 4
        if self.kind == "Q4_0":
            groups -= 8
        groups *= halves[..., :1]
        if self.kind == "Q4_1":
            groups += halves[..., 1:]
        return groups.flatten(1)
