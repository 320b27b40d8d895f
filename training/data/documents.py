r"""Documents and the files they travel in: records \x00 package \x02 path \x01 text, UTF-8.

A package's name tells what it is: "algo:" collections of small programs, "git:" repositories of
larger ones, "npm:" and "debian:" packages of those registries, "reserved:" the evaluation's, else
PyPI's. "old:" before a name: earlier releases of its files, of which only the changes since are
used.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import zstandard

LANGUAGE_OF = {".py": "py", ".js": "js", ".mjs": "js", ".cjs": "js", ".jsx": "js"}
LANGUAGE_OF |= {".ts": "ts", ".mts": "ts", ".cts": "ts", ".tsx": "tsx"}
LANGUAGE_OF |= {".go": "go", ".rs": "rust", ".java": "java", ".c": "c"}
# The product takes .h for C++ too, whose grammar reads nearly all of C.
LANGUAGE_OF |= dict.fromkeys((".h", ".hpp", ".hh", ".cc", ".cpp", ".cxx"), "cpp")
LANGUAGES = ("py", "js", "ts", "tsx", "go", "rust", "java", "c", "cpp")  # a shard stores the index
# The compiled languages, and the pool that each is in.
COMPILED_POOL_OF = {"go": "go", "rust": "rust", "java": "java", "c": "c", "cpp": "c"}

OLD = "old:"

# Level 9 with long matches packs 46 MB/s to 17 %; LZMA packs 2.5 MB/s to 14 %.
_LEVEL, _WINDOW_LOG = 9, 29


class Document(NamedTuple):
    """One source file.

    Attributes:
        package: name of its package, with the prefix described above.
        path: within the package.
        text: its cleaned content.
    """

    package: str
    path: str
    text: str


def language_of(path: str) -> str:
    """Return the language of a source file's path, one of `LANGUAGES`.

    Raises:
        KeyError: the path ends like no source file.
    """
    return LANGUAGE_OF["." + path.rsplit(".", 1)[-1]]


def load_documents(path: Path | str) -> list[Document]:
    """Return the records of a .bin or .bin.zst file.

    Raises:
        OSError: it cannot be read.
        zstandard.ZstdError: it is no whole .zst file.
    """
    with open(path, "rb") as file:
        if str(path).endswith(".zst"):
            unpacker = zstandard.ZstdDecompressor(max_window_size=2**31)
            data = unpacker.stream_reader(file).read()
        else:
            data = file.read()
    documents = []
    for record in data.split(b"\x00")[1:]:  # decoded one by one: an emoji widens a whole string
        head, text = record.decode("utf-8").split("\x01", 1)
        package, inner = head.split("\x02")
        documents.append(Document(package, inner, text))
    return documents


def join_records(documents: Iterable[Document]) -> bytes:
    """Return documents as the bytes of a .bin file."""
    return b"".join(f"\x00{p}\x02{n}\x01{t}".encode() for p, n, t in documents)


def write_documents(path: Path, documents: list[Document]) -> None:
    """Write records to a .bin or .bin.zst file, whole or not at all."""
    data = join_records(documents)
    if path.suffix == ".zst":
        options = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, window_log=_WINDOW_LOG, enable_ldm=True
        )
        data = zstandard.ZstdCompressor(compression_params=options).compress(data)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
