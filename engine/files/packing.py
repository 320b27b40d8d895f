"""`quant` q4 and q8: matrices rounded to a GGUF file's blocks when they are read."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.weights.blocks import GGUF_GROUP, BlockMatrix
from ...kernels.weights.linear import Matrix
from ...kernels.weights.rounding import to_blocks
from ..model.tensors import EMBEDDING, HEAD, PROJECTIONS
from .packed_cache import PackedCache

_OF_LAYERS = tuple(
    f".{part.name.rpartition('.')[2]}.weight" for parts in PROJECTIONS.values() for part in parts
)
# Q4_1 follows a block's minimum and its maximum, Q4_0 only the larger of them. The embedding, and a
# head above all, lose more by four bits than they weigh: llama.cpp keeps them at six or eight.
KINDS = {"q4": ("Q4_1", "Q8_0"), "q8": ("Q8_0", "Q8_0")}


@dataclass(frozen=True, slots=True)
class Packing:
    """How matrices are rounded, and where that is kept.

    Attributes:
        quant: "q4": 5 bits a weight with scales and minimums, embedding and head 8.5; "q8": 8.5.
        cache: where packed weights are kept; None: nowhere.
    """

    quant: str
    cache: PackedCache | None

    def packed(self, name: str, matrix: Matrix) -> Matrix:
        """Return a tensor of a model as it is to be kept.

        What a file has in such blocks stays as it is, and what is no matrix or has no whole
        number of blocks in a row.

        Raises:
            ValueError: it holds values that are not finite in fp16.
        """
        of_layer, of_ends = KINDS[self.quant]
        is_end = name in (EMBEDDING, HEAD)
        if isinstance(matrix, BlockMatrix) or not (is_end or name.endswith(_OF_LAYERS)):
            return matrix
        if matrix.ndim != 2 or matrix.shape[1] % GGUF_GROUP:
            return matrix
        return to_blocks(matrix, of_ends if is_end else of_layer)
