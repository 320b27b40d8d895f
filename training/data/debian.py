"""Debian's packages as files with a licence: sources (.dsc), and binaries that hold sources (.deb).

Libraries of Go and Rust are there as binary packages that other builds read (golang-*-dev,
librust-*-dev). A file counts if debian/copyright permits it by name, see `copyright`.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from .copyright import Stanza, licence_of, parse_copyright, permissive
from .documents import COMPILED_POOL_OF, LANGUAGE_OF
from .packages import MAX_BYTES, MIN_BYTES, Package, Reader, read_download

_ENDS = frozenset(end for end, language in LANGUAGE_OF.items() if language in COMPILED_POOL_OF)
_COPYRIGHT = re.compile(r"(\./)?(([^/]+/)?debian|usr/share/doc/[^/]+)/copyright")
# Where binary packages put whole sources, under their root.
_ROOT = re.compile(r"^(\./)?usr/(share/cargo/registry|src|share(?=/go-\d))/[^/]+/")
# Where they put sources at all; what follows is how their users know them.
_PLACE = re.compile(r"^(\./)?(usr/share/(gocode/src|cargo/registry)/|usr/(share|src|lib)/)?")

File = tuple[str, bytes]


class _Found(NamedTuple):
    """A file: its path in a document, its path in the source if that is known, and its content."""

    path: str
    within: str | None
    data: bytes


def read_source(path: Path, names: dict[str, str] | None = None) -> Package:
    """Read a source package by its .dsc file, whose tarballs lie beside it.

    Args:
        path: of the .dsc file.
        names: licences as this package names them to what they are, where only a person can tell.

    Raises:
        FileNotFoundError: one of its tarballs is not there.
        tarfile.TarError, EOFError, lzma.LZMAError: one is damaged.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    # The first of each: behind them a signature may have a "Version" too.
    fields = dict(reversed(re.findall(r"^(Source|Version): (.+)$", text, re.M)))
    files: list[_Found] = []
    told = ""
    for name in sorted(set(re.findall(r"^ [0-9a-f]{32,} \d+ (\S+\.tar\.\w+)$", text, re.M))):
        with tarfile.open(path.with_name(name)) as archive:
            members, copyright_text = _members(archive)
            top = _top(archive.getnames())
        told = told or copyright_text  # *.debian.* comes first
        component = re.search(r"\.orig-([\w-]+)\.tar\.", name)
        for inner, data in members:
            inner = inner.removeprefix("./").removeprefix(top)
            if not inner.startswith("debian/") and ".debian.tar." not in name:
                within = f"{component[1]}/{inner}" if component else inner
                files.append(_Found(f"{fields['Source']}/{within}", within, data))
    stanzas = parse_copyright(told)
    package = Package("debian:" + fields["Source"], fields["Version"], "", [])
    return _permitted(package, files, stanzas, names or {})


def read_binary(path: Path, names: dict[str, str] | None = None) -> Package:
    """Read a binary package that holds sources.

    Where its files were in the source, which debian/copyright speaks of, Go's do not say: such a
    file is taken if whatever its path ends in is permitted.

    Args:
        path: of the .deb file.
        names: as of `read_source`.

    Raises:
        ValueError: it is no .deb file.
        tarfile.TarError, EOFError, lzma.LZMAError: it is damaged.
    """
    name, version = path.name.split("_")[:2]
    with path.open("rb") as file, _data_of(file) as data, tarfile.open(fileobj=data) as archive:
        members, told = _members(archive)
    files = []
    for inner, data in members:
        root = _ROOT.match(inner)
        within = inner[root.end() :] if root else None
        files.append(_Found(_PLACE.sub("", inner), within, data))
    stanzas = parse_copyright(told)
    package = Package("debian:" + name, version.replace("%3a", ":"), "", [])
    return _permitted(package, files, stanzas, names or {})


def debian_readers(folder: Path, sources: dict[str, Any]) -> list[Reader]:
    """Return what reads the packages in the folder's `source` and `binary`, in that order."""
    names = sources.get("debian", {}).get("licence_names", {})
    readers: list[Reader] = []
    for read, pattern in ((read_source, "source/*.dsc"), (read_binary, "binary/*.deb")):
        named = functools.partial(read, names=names)
        paths = sorted(folder.glob(pattern))
        readers += [functools.partial(read_download, named, path, sources) for path in paths]
    return readers


def _permitted(
    package: Package, files: list[_Found], stanzas: list[Stanza], names: dict[str, str]
) -> Package:
    """Give a package the files that its licences permit, and return it.

    Args:
        package: to be filled.
        files: of it.
        stanzas: of its debian/copyright.
        names: see `read_source`.
    """
    licences: set[str] = set()
    for path, within, data in files:
        ends = [path[match.end() :] for match in re.finditer("/", path)]
        places = [path, *ends] if within is None else [within]
        told = {licence_of(stanzas, place) for place in places}
        found = [permissive(names.get(licence, licence)) for licence in told]
        if all(found):
            licences.update(name for some in found for name in some)
            package.files.append((path, data))
        else:
            package.refused.append(path)
    package.licence = ", ".join(sorted(licences or {stanza.licence for stanza in stanzas}))
    if not stanzas:
        package.licence = "debian/copyright is missing or not machine-readable"
    return package


def _members(archive: tarfile.TarFile) -> tuple[list[File], str]:
    """Return the source files of an archive, and the text of debian/copyright in it, or ""."""
    files, told = [], ""
    for member in archive:
        is_copyright = _COPYRIGHT.fullmatch(member.name)
        is_source = os.path.splitext(member.name)[1] in _ENDS
        is_source = is_source and MIN_BYTES <= member.size <= MAX_BYTES
        if not member.isfile() or not (is_source or is_copyright):
            continue
        content = archive.extractfile(member)
        data = content.read() if content else b""
        if is_copyright:
            told = told or data.decode("utf-8", "replace")
        else:
            files.append((member.name, data))
    return files, told


def _top(names: list[str]) -> str:
    """Return the folder that all names are in, with its slash, or ""."""
    tops = {name.removeprefix("./").split("/")[0] for name in names} - {"", "."}
    is_one = len(tops) == 1 and any("/" in name.removeprefix("./") for name in names)
    return tops.pop() + "/" if is_one else ""


def _data_of(file: IO[bytes]) -> IO[bytes]:
    """Return the tarball of files in a .deb file, which is an `ar` archive.

    Raises:
        ValueError: it is none.
    """
    if file.read(8) != b"!<arch>\n":
        raise ValueError("no .deb file")
    while len(head := file.read(60)) == 60:
        name, size = head[:16].decode().strip().rstrip("/"), int(head[48:58])
        if name.startswith("data.tar"):
            data: IO[bytes] = io.BytesIO(file.read(size))
            if name.endswith(".zst"):
                data = io.BytesIO(zstandard.ZstdDecompressor().stream_reader(data).read())
            return data
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("a .deb file without files")
