"""Packed weights kept in the user's cache folder, so that the next start only maps them.

A file is written beside its place, and moved there when it is whole; it is never changed after
that, and so can be mapped: one that is removed while it is in use stays until nobody maps it.
All of it is checked by a CRC at every load, which also reads it in; that finds damage, not malice:
the folder is the user's own. What is not as it should be is packed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...kernels.weights.blocks import GGUF_BLOCKS, BlockMatrix
from ...kernels.weights.linear import Matrix

log = logging.getLogger(__name__)

# Of what lies in a file, and of how it is packed: raised by every change of either.
_VERSION = 1
_MAGIC = b"KEYTURN\0"
# Magic, version, CRC-32 of all that follows, start and size of the description at the end.
_PREFACE = struct.Struct("<8sIIQQ")
_ALIGNMENT = 64
PIECE_BYTES = 1 << 22
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
_LEFT_OVER_S = 86_400.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

VARIABLE = "KEYTURN_PACKED_BYTES"
_MAX_BYTES = 20_000_000_000


class PackedCache:
    """The folder, bounded in bytes: the files that were used last stay."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Name the folder; nothing is touched yet.

        Args:
            folder: made when something is kept, for its user alone.
            max_bytes: of all files together; a model that is larger by itself is not kept.
        """
        self.folder, self.max_bytes = folder, max_bytes

    def load(self, key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Matrix] | None:
        """Return tensors mapped from the file of a key, None if there is none that is whole.

        Args:
            key: as `key_of` makes it.
            shapes: name to shape of what must be in it.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                tensors = _mapped(file)
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, struct.error) as error:
            log.warning("%s is packed anew: %s", path, error)
            return None
        if {name: tuple(part.shape) for name, part in tensors.items()} != dict(shapes):
            log.warning("%s is packed anew: it holds other tensors", path)
            return None
        return tensors

    def keep(self, key: str, tensors: Iterable[tuple[str, Matrix]]) -> bool:
        """Write tensors to the file of a key, one after another, whole or not at all.

        Args:
            key: as `key_of` makes it.
            tensors: name and tensor; matrices in blocks stay neighbours in this order, so that
                those of one projection are one matrix when they are mapped.

        Returns:
            Whether it is there now; False, for instance, if the disk is full. The tensors are then
            used up all the same.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".part", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    size = _write(file, tensors, self.max_bytes)
                self._make_room(size)
                os.replace(name, self._path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning("packed weights are not kept in %s: %s", self.folder, error)
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.packed"

    def _make_room(self, num_bytes: int) -> None:
        """Remove what was used longest ago until so many bytes fit, and what a crash has left."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        room = self.max_bytes - num_bytes
        for used_at, size, path in sorted(found, reverse=True):
            if path.suffix == ".packed":
                room -= size
            left_over = path.suffix == ".part" and used_at < time.time() - _LEFT_OVER_S
            if left_over or (path.suffix == ".packed" and room < 0):
                path.unlink(missing_ok=True)


def user_cache() -> PackedCache:
    """Return the user's own cache: `keyturn/packed` in $XDG_CACHE_HOME, else in ~/.cache.

    KEYTURN_PACKED_BYTES bounds it, 20 GB by default; 0 keeps nothing.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    given = os.environ.get(VARIABLE, "")
    return PackedCache(
        folder / "keyturn" / "packed", int(given) if given.isdecimal() else _MAX_BYTES
    )


def key_of(files: Iterable[Path], *about: str) -> str:
    """Return the key of files, in order, and of what is made of them.

    To hash gigabytes takes longer than to pack them anew is worth, so a file is known by its size,
    when it was written, and 16 pieces of 64 KiB from its first byte to its last.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, *about]).encode())
    for path in files:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            digest.update(struct.pack("<qq", found.st_size, found.st_mtime_ns))
            last = max(0, found.st_size - _SAMPLE_BYTES)
            for number in range(_SAMPLES):
                file.seek(last * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _write(file: BinaryIO, tensors: Iterable[tuple[str, Matrix]], max_bytes: int) -> int:
    """Write a whole file; return its size. Plain tensors go to its end, aligned."""
    entries: dict[str, Any] = {}
    plain: list[tuple[str, Tensor]] = []
    crc = 0

    def put(data: Tensor | bytes) -> int:
        nonlocal crc
        start = file.tell()
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if start + size > max_bytes:
            raise OSError(f"more than the {max_bytes} bytes that {VARIABLE} allows")
        # What is on a GPU is on the host a piece at a time.
        pieces = [data] if isinstance(data, bytes) else _flat(data).split(PIECE_BYTES)
        for piece in pieces:
            view = memoryview(piece) if isinstance(piece, bytes) else piece.cpu().numpy().data
            crc = zlib.crc32(view, crc)
            file.write(view)
        return start

    def align() -> None:
        put(bytes(-file.tell() % _ALIGNMENT))

    file.write(bytes(_PREFACE.size))
    align()
    for name, tensor in tensors:
        if isinstance(tensor, BlockMatrix):
            start = put(tensor.blocks)
            entries[name] = [tensor.kind, list(tensor.shape), start]
        else:
            plain.append((name, tensor))
    for name, tensor in plain:
        align()
        start = put(tensor)
        kind = str(tensor.dtype).removeprefix("torch.")
        entries[name] = [kind, list(tensor.shape), start]
    description = json.dumps(entries).encode()
    start = put(description)
    size = file.tell()
    file.seek(0)
    file.write(_PREFACE.pack(_MAGIC, _VERSION, crc, start, len(description)))
    file.flush()
    os.fsync(file.fileno())
    return size


def _flat(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, (n,) uint8."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _mapped(file: BinaryIO) -> dict[str, Matrix]:
    """Return the tensors of an open file.

    Raises:
        ValueError and others: it is not what `_write` wrote.
    """
    # A private map: what would write to it, and nothing does, would not change the file.
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    magic, version, wanted, start, size = _PREFACE.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION) or start + size != len(data):
        raise ValueError("it is of another version, or cut")
    crc = 0
    with memoryview(data) as view:
        for at in range(_PREFACE.size, len(data), PIECE_BYTES):
            crc = zlib.crc32(view[at : at + PIECE_BYTES], crc)
    if crc != wanted:
        raise ValueError("its checksum is wrong")
    whole = torch.frombuffer(data, dtype=torch.uint8)
    tensors: dict[str, Matrix] = {}
    for name, (kind, shape, at) in json.loads(data[start : start + size]).items():
        if kind in GGUF_BLOCKS:
            rows, row_bytes = shape[0], BlockMatrix.row_bytes(kind, shape[1])
            blocks = whole[at : at + rows * row_bytes].view(rows, row_bytes)
            tensors[name] = BlockMatrix(blocks, kind)
        else:
            dtype = _DTYPES[kind]
            num_bytes = math.prod(shape) * dtype.itemsize
            tensors[name] = whole[at : at + num_bytes].view(dtype).view(shape)
    return tensors
