"""Read a GGUF file's metadata and tensors straight from a memory map.

The gguf library's own reader takes seconds over the strings of a vocabulary; here it only knows the
block formats and dequantises. Every length is checked before it is used, so that a damaged file is
an error and never a crash or a huge allocation.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.weights.blocks import GGUF_BLOCKS, BlockMatrix
from ..wire.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_MAX_DIMENSIONS = 4
# Dequantised at a time: the library by itself takes few rows and three times as long, a whole
# embedding at once takes gigabytes of temporaries, and from 32,768 values on torch copies with
# several threads, which wait for each other for seconds when the machine is busy.
_PIECE_VALUES = 32_768 - 256


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: rows first, as numpy and torch count.
        kind: its block format.
        start: byte offset in the file.
        num_bytes: its size in the file.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    num_bytes: int


class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: the file.
        metadata: key to value; arrays of numbers are numpy arrays, arrays of strings lists.
        tensors: name to place.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            ModelLoadError: it cannot be read, is no GGUF file, or is damaged.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ModelLoadError(f"{path} cannot be read ({error}); fetch it again") from None
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise self.damaged(f"unreadable header: {error}") from None

    def damaged(self, reason: str) -> ModelLoadError:
        """Return the error that says what is wrong with this file."""
        return ModelLoadError(f"{self.path} is damaged or incomplete ({reason}); fetch it again")

    def tensor(
        self,
        name: str,
        dtype: torch.dtype,
        row_order: NDArray[np.int64] | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return one tensor, dequantised piece by piece into a new one of that dtype.

        Args:
            name: as in the file.
            dtype: of the result.
            row_order: which row of the file comes where; exact, since blocks lie along rows.
            rows: the first and the last row of the file, that one excluded, that are wanted, for
                `row_order` to count from; those of several matrices in one tensor are counted on.
                None: all, in the tensor's shape.

        Raises:
            ModelLoadError: its block format cannot be dequantised.
        """
        info = self.tensors[name]
        block_size, block_bytes = GGML_QUANT_SIZES[info.kind]
        taken = self._rows(info, row_order, rows)
        raw = taken.reshape(-1)
        shape = info.shape if rows is None else (len(taken), *info.shape[1:][-1:])
        result = torch.empty(shape, dtype=dtype)
        flat = result.view(-1)
        num_blocks = _PIECE_VALUES // block_size
        for first in range(0, len(raw) // block_bytes, num_blocks):
            piece = raw[first * block_bytes : (first + num_blocks) * block_bytes]
            try:
                values = dequantize(piece.reshape(1, -1), info.kind).ravel()
            except NotImplementedError:
                raise ModelLoadError(
                    f"{self.path}: tensor {name!r} is stored as {info.kind.name}, which cannot be "
                    "dequantised; use a file in F16, Q8_0, Q5_1 or Q4_1"
                ) from None
            writable = np.require(values, np.float32, ["C", "W"])
            start = first * block_size
            flat[start : start + len(values)] = torch.from_numpy(writable)
        return result

    def blocks(
        self,
        name: str,
        row_order: NDArray[np.int64] | None = None,
        rows: tuple[int, int] | None = None,
    ) -> BlockMatrix | None:
        """Return a matrix as it is stored, copied out of the file; None if it is not in blocks.

        A copy, since a file that is overwritten or cut short must not reach a loaded model.
        Arguments as for `tensor`.
        """
        info = self.tensors[name]
        is_matrix = len(info.shape) == 2 or (rows is not None and len(info.shape) == 3)
        if info.kind.name not in GGUF_BLOCKS or not is_matrix:
            return None
        taken = self._rows(info, row_order, rows)
        copied = taken.copy() if row_order is None else taken
        return BlockMatrix(torch.from_numpy(copied), info.kind.name)

    def _rows(
        self,
        info: TensorInfo,
        row_order: NDArray[np.int64] | None,
        rows: tuple[int, int] | None,
    ) -> NDArray[np.uint8]:
        """Return rows of a tensor, (n, bytes of one); a view of the file where they are in order.

        Of a vector each value is a row, unless all of it is wanted.
        """
        raw = np.frombuffer(self._data, np.uint8, info.num_bytes, info.start)
        num_rows = math.prod(info.shape[:-1])
        if len(info.shape) == 1 and (rows is not None or row_order is not None):
            num_rows = info.shape[0]
        taken = raw.reshape(num_rows, -1)
        if rows is not None:
            taken = taken[slice(*rows)]
        return taken if row_order is None else taken[row_order]

    # Header

    def _read_header(self) -> None:
        if self._data[:4] != _MAGIC:
            raise ModelLoadError(
                f"{self.path} is not a GGUF file; fetch it again or give a .gguf model"
            )
        self._at = 4
        version = self._scalar("<I")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{self.path} has GGUF version {version}; versions 2 and 3 (little-endian) are "
                "supported, convert it anew"
            )
        num_tensors, num_keys = self._count(24), self._count(12)
        for _ in range(num_keys):
            key = self._string()
            if key in self.metadata:
                raise self.damaged(f"the key {key!r:.80} occurs twice")
            self.metadata[key] = self._value(self._scalar("<I"))
        places = [self._tensor() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise self.damaged(f"alignment {alignment}")
        base = -(-self._at // alignment) * alignment
        for name, shape, kind, offset, num_bytes in places:
            if base + offset + num_bytes > len(self._data):
                raise self.damaged(f"tensor {name!r} lies beyond the end of the file")
            if name in self.tensors:
                raise self.damaged(f"tensor {name!r} occurs twice")
            self.tensors[name] = TensorInfo(shape, kind, base + offset, num_bytes)

    def _scalar(self, code: str) -> Any:  # noqa: ANN401
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return value

    def _count(self, item_bytes: int) -> int:
        """Read a length, in items of that many bytes at least."""
        count = int.from_bytes(self._data[self._at : self._at + 8], "little")
        self._at += 8
        if self._at + count * item_bytes > len(self._data):
            raise self.damaged(f"a length of {count} at byte {self._at - 8}")
        return count

    def _string(self) -> str:
        start, size = self._at + 8, self._count(1)
        self._at = start + size
        return self._data[start : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:  # noqa: ANN401
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.damaged(f"a value of type {kind} at byte {self._at}")
        item_kind = self._scalar("<I")
        if item_kind == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if item_kind not in _SCALARS:  # arrays of arrays are in no model's header
            raise self.damaged(f"an array of type {item_kind} at byte {self._at}")
        dtype = np.dtype(_SCALARS[item_kind])
        count = self._count(dtype.itemsize)
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return values

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]:
        name = self._string()
        num_dimensions = self._scalar("<I")
        if not 0 < num_dimensions <= _MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(num_dimensions))[::-1]
        code, offset = self._scalar("<I"), self._scalar("<Q")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise self.damaged(f"tensor {name!r} has the unknown format {code}") from None
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block_size:
            raise self.damaged(f"tensor {name!r} has the shape {list(shape)}")
        return name, shape, kind, offset, math.prod(shape) // block_size * block_bytes
