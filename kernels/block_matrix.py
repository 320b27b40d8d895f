"""Matrices as a GGUF file stores them, in blocks of 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of one block, and its number of bytes before the codes: d, and for Q4_1 also m, in fp16.
GGUF_BLOCKS = {"Q4_0": (18, 2), "Q4_1": (20, 4), "Q8_0": (34, 2)}
_GGUF_GROUP = 32


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
        return self.blocks.shape[0], self.blocks.shape[1] // size * _GGUF_GROUP

    def to(self, device: torch.device | str) -> BlockMatrix:
        """Return it on another device."""
        return BlockMatrix(self.blocks.to(device), self.kind)

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

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the (n, K) values of the rows at (n,) int64, rounded once from float32."""
        return BlockMatrix(self.blocks[index], self.kind).values(dtype)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the (N, K) values, rounded once from float32."""
        codes, scales, minimums = self.parts()
        groups = codes.reshape(*scales.shape, _GGUF_GROUP).float()
        if minimums is None:
            groups -= 128 if self.kind == "Q8_0" else 8
        groups *= scales.float()[..., None]
        if minimums is not None:
            groups += minimums.float()[..., None]
        return groups.flatten(1).to(dtype)
