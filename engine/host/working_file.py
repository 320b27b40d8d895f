"""Which document the engine host is working on, on disk, for the host that comes after a crash."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import msgpack

from ..wire.address import open_private
from ..wire.protocol import pack_body
from .held_document import DocumentKey


class WorkingFile:
    """Says on disk which document is being worked on, so that a crash can be laid at its door.

    One small write per job, which outlives the process without a flush to the disk.
    """

    _LENGTH = struct.Struct(">I")

    def __init__(self, path: Path) -> None:
        """Read what the host before this one died on, if it did."""
        self._fd = open_private(path, os.O_RDWR)
        self._noted: DocumentKey | None = None
        self.died_on: dict[str, Any] | None = None
        with contextlib.suppress(struct.error, ValueError, msgpack.UnpackException, OSError):
            content = os.read(self._fd, 1 << 20)
            (length,) = self._LENGTH.unpack_from(content)
            if length:
                body = content[self._LENGTH.size : self._LENGTH.size + length]
                self.died_on = msgpack.unpackb(body, unicode_errors="surrogatepass")
        self._write(b"")

    def close(self) -> None:
        """Note that the host ends by itself: it died on nothing."""
        self._write(b"")
        os.close(self._fd)

    def note(self, key: DocumentKey | None) -> None:
        """Note the document worked on from now on."""
        if key == self._noted:
            return
        self._noted = key
        if key is None:
            self._write(b"")
            return
        client, doc = key
        entry = {"pid": os.getpid(), "client": getattr(client, "name", ""), "doc": doc}
        self._write(pack_body(entry))

    def _write(self, body: bytes) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, self._LENGTH.pack(len(body)) + body)
