"""Downloaded packages as files with a licence: wheels, npm tarballs, git commits, the stdlib.

Of these, files in Python, JavaScript and TypeScript are read; `debian` has the other languages.
"""

from __future__ import annotations

import functools
import json
import lzma
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .documents import COMPILED_POOL_OF, LANGUAGE_OF

MIN_BYTES, MAX_BYTES = 150, 200_000  # of a file that is read
BAD_LICENCE = re.compile(
    r"GNU (Lesser |Affero |Library )?General Public|\b[AL]?GPL|Mozilla Public License|\bMPL\b|"
    r"proprietary|\bEUPL|\bEPL\b|CDDL|CeCILL|SSPL|BUSL|Business Source|Commons Clause|"
    r"Elastic License|UNLICENSED|CC[- ]BY|Creative Commons",
    re.I,
)
GOOD_LICENCE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software|Zlib|Unlicense|0BSD|CC0|Boost|BlueOak|HPND|WTFPL|"
    r"MIT-CMU|Public Domain|ASL 2|Expat)",
    re.I,
)

_ENDS = frozenset(end for end, name in LANGUAGE_OF.items() if name not in COMPILED_POOL_OF)
_METADATA_LICENCES = ("License-Expression:", "License:", "Classifier: License")
_LICENCE_FILE = re.compile(r"\.dist-info/(licenses/)?(LICEN[SC]E|COPYING)", re.I)
_STDLIB_CAP, _REPOSITORY_CAP = 40e6, 12e6
_LICENCE_HEAD = 600  # characters of a licence file that name it


@dataclass
class Package:
    """One package.

    Attributes:
        name: with the prefix of its kind, see `documents`.
        version: of the release; the first 12 digits of a commit.
        licence: as its metadata or its licence file names it; "" if nothing does.
        files: (path, bytes) of its source files.
        program_set: whether it is a collection of small programs.
        cap: characters of it that may be kept.
        refused: paths of source files that a licence of their own keeps out.
    """

    name: str
    version: str
    licence: str
    files: list[tuple[str, bytes]]
    program_set: bool = False
    cap: float = 4e6
    refused: list[str] = field(default_factory=list)


Reader = Callable[[], Package | None]


def allowed(licence: str) -> bool:
    """Return whether a licence permits training and names nothing that does not."""
    return not BAD_LICENCE.search(licence) and bool(GOOD_LICENCE.search(licence))


def read_wheel(path: Path) -> Package:
    """Read a wheel.

    Raises:
        zipfile.BadZipFile: it is damaged.
    """
    name, version = path.name.split("-")[:2]
    with zipfile.ZipFile(path) as archive:
        files = [
            (entry.filename, archive.read(entry))
            for entry in archive.infolist()
            if _wanted(entry.filename, entry.file_size)
        ]
        return Package(name.lower(), version, _wheel_licence(archive), files)


def read_tarball(path: Path) -> Package:
    """Read a tarball of `npm pack`.

    Raises:
        tarfile.TarError, EOFError: it is damaged.
        json.JSONDecodeError: its package.json is.
    """
    files: list[tuple[str, bytes]] = []
    meta: dict[str, Any] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            inner = member.name.split("/", 1)[-1]
            is_meta = inner == "package.json"
            if not is_meta and not (member.isfile() and _wanted(inner, member.size)):
                continue
            content = archive.extractfile(member)
            data = content.read() if content else b""
            if is_meta:
                meta = json.loads(data)
            else:
                files.append((inner, data))
    name = meta.get("name", path.stem)
    files = [(f"npm/{name}/{inner}", data) for inner, data in files]
    return Package("npm:" + name, meta.get("version", ""), _npm_licence(meta), files)


def read_stdlib() -> Package:
    """Read the standard library of the Python that runs this."""
    root, files = Path(sysconfig.get_path("stdlib")), []
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root)
        is_installed = {"site-packages", "dist-packages"} & set(inner.parts)
        if not is_installed and path.stat().st_size <= MAX_BYTES:
            files.append((f"stdlib/{inner}", path.read_bytes()))
    return Package("stdlib", sys.version.split()[0], "PSF-2.0", files, cap=_STDLIB_CAP)


def read_repository(path: Path, name: str, commit: str, under: str = "") -> Package:
    """Read one commit of a git directory; the licence is that of its first licence file.

    Args:
        path: the git directory.
        name: "OWNER/NAME" on GitHub.
        commit: any name of it that git resolves.
        under: folder to read, "" for all.

    Raises:
        subprocess.CalledProcessError: the commit is not there.
    """
    git = ["git", "-C", str(path)]
    run = functools.partial(subprocess.run, capture_output=True, check=True)
    tree = run([*git, "ls-tree", "-r", "-z", commit, *([under] if under else [])], text=True)
    entries = [entry.split("\t", 1) for entry in tree.stdout.split("\0") if entry]
    blobs = [(p, meta.split()[2]) for meta, p in entries if os.path.splitext(p)[1] in _ENDS]
    wanted = "\n".join(blob for _, blob in blobs).encode()
    content = run([*git, "cat-file", "--batch"], input=wanted).stdout
    root = run([*git, "ls-tree", "--name-only", commit], text=True).stdout.split("\n")
    licences = [p for p in root if re.match(r"(licen[cs]e|copying|unlicense)", p, re.I)]
    text = run([*git, "show", f"{commit}:{licences[0]}"], text=True).stdout if licences else ""
    return Package(
        "algo:" + name.replace("/", "+"),
        run([*git, "rev-parse", commit], text=True).stdout.strip()[:12],
        _file_licence(text),
        _batch_files([p for p, _ in blobs], content),
        program_set=True,
        cap=_REPOSITORY_CAP,
    )


def package_readers(folder: Path, sources: dict, repositories: Path | None) -> list[Reader]:
    """Return what reads the standard library, the repositories and the packages, in that order.

    Args:
        folder: of `fetch_sources`, with `whl` and `npm`.
        sources: sources.json.
        repositories: folder of git directories OWNER+NAME/repo; None leaves them out.
    """
    readers: list[Reader] = [read_stdlib]
    for name, where in (sources.get("repositories", {}) if repositories else {}).items():
        assert repositories is not None, "asked above"
        place = repositories / name.replace("/", "+") / "repo"
        plain = name in sources.get("plain_repositories", ())
        readers.append(functools.partial(_read_named, place, name, where, plain))
    for read, kind, pattern in ((read_wheel, "whl", "*.whl"), (read_tarball, "npm", "*.tgz")):
        paths = sorted((folder / kind).glob(pattern))
        readers += [functools.partial(read_download, read, path, sources) for path in paths]
    return readers


def _read_named(path: Path, name: str, where: dict[str, str], plain: bool) -> Package:
    package = read_repository(path, name, where["commit"], where.get("under", ""))
    if plain:
        package.name, package.program_set = "git:" + package.name.removeprefix("algo:"), False
    return package


def read_download(
    read: Callable[[Path], Package], path: Path, sources: dict[str, Any]
) -> Package | None:
    """Return the package with its cap, or say why it cannot be read."""
    damages = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError)
    try:
        package = read(path)
    except damages as error:
        print(f"{path.name} is damaged ({error}); delete it and fetch it again", flush=True)
        return None
    is_npm = package.name.startswith("npm:")
    if package.name.startswith("debian:"):
        usual = sources["debian"]["cap_mb"]
    else:
        usual = sources.get("cap_npm_mb", 2) if is_npm else sources.get("cap_default_mb", 4)
    package.cap = sources.get("cap_mb", {}).get(package.name, usual) * 1e6
    if package.name in sources.get("program_sets", []):
        package.program_set = True
        package.name = package.name if is_npm else "algo:" + package.name
    return package


def _wanted(name: str, size: int) -> bool:
    return os.path.splitext(name)[1] in _ENDS and MIN_BYTES <= size <= MAX_BYTES


def _wheel_licence(archive: zipfile.ZipFile) -> str:
    for name in archive.namelist():
        if name.endswith(".dist-info/METADATA"):
            head = archive.read(name).decode("utf8", "replace").split("\n\n")[0].split("\n")
            found = [
                line.split("::")[-1].strip() if "::" in line else line.split(":", 1)[1].strip()[:60]
                for line in head
                if line.startswith(_METADATA_LICENCES)
            ]
            if found:
                return " | ".join(dict.fromkeys(found))
        if _LICENCE_FILE.search(name) and not name.endswith("/"):
            text = archive.read(name).decode("utf8", "replace")[:_LICENCE_HEAD]
            if found := GOOD_LICENCE.search(text):
                return f"{found[1]} (from the licence file)"
    return ""


def _npm_licence(meta: dict[str, Any]) -> str:
    licence = meta.get("license") or meta.get("licenses") or ""
    if isinstance(licence, list):
        return " | ".join(x.get("type", "") if isinstance(x, dict) else str(x) for x in licence)
    return licence.get("type", "") if isinstance(licence, dict) else licence


def _file_licence(text: str) -> str:
    head = text[:_LICENCE_HEAD]
    found = GOOD_LICENCE.search(head) or re.search("Unlicense|public domain", text, re.I)
    return "" if found is None or BAD_LICENCE.search(head) else found[0].strip()


def _batch_files(paths: list[str], content: bytes) -> list[tuple[str, bytes]]:
    """Return (path, bytes) out of what `git cat-file --batch` printed, leaving odd sizes out."""
    files, at = [], 0
    for path in paths:
        line_end = content.index(b"\n", at)
        fields = content[at:line_end].split()
        at = line_end + 1
        if fields[-1] == b"missing":  # a snapshot without its large files
            continue
        size = int(fields[2])
        if MIN_BYTES <= size <= MAX_BYTES:
            files.append((path, content[at : at + size]))
        at += size + 1
    return files
