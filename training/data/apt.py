"""Debian's archive through apt, with lists and cache of its own: the machine's stay as they are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ETC = Path("/etc/apt")
_LISTED = re.compile(r"^ [0-9a-f]{64} (\d+) (\S+)$", re.M)  # a file with its SHA-256, in a .dsc


def apt_options(folder: Path, release: str, etc: Path = ETC) -> list[str]:
    """Update lists of packages and sources in a folder; return what makes apt-get read them.

    Args:
        folder: for the lists and the cache.
        release: name of a Debian release. From where it comes, the machine's own lists say.
        etc: where those are.

    Raises:
        OSError: there is no apt-get.
        subprocess.CalledProcessError: the lists cannot be had.
    """
    lists, cache, parts = (folder.resolve() / name for name in ("lists", "cache", "sources.d"))
    for inner in (lists / "partial", cache / "archives" / "partial", parts):
        inner.mkdir(parents=True, exist_ok=True)
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = with_sources(path.read_text(encoding="utf-8"), release, path.suffix)
            (parts / path.name).write_text(text, encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": parts,
        "Dir::State::Lists": lists,
        "Dir::Cache": cache,
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
        # Its user for downloads may not read a folder of ours.
        **({"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}),
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", "update", "-qq", *options], check=True, capture_output=True)
    return options


def with_sources(text: str, release: str, suffix: str) -> str:
    """Return a list of archives with sources beside packages, and that release only.

    Args:
        text: a .list or .sources file.
        release: its name.
        suffix: which of both it is.
    """
    if suffix == ".list":
        lines = [line for line in text.splitlines() if re.match(rf"deb\s.*\b{release}\b", line)]
        return "".join(f"{line}\ndeb-src{line[3:]}\n" for line in lines)
    paragraphs = []
    for part in re.split(r"\n(?:[ \t]*\n)+", text):
        fields = re.sub(r"^#.*\n?", "", part, flags=re.M)
        is_off = re.search(r"^Enabled:\s*no", fields, re.M | re.I)
        if re.search(rf"^Suites:.*\b{release}\b", fields, re.M) and not is_off:
            paragraphs.append(re.sub(r"^Types:.*", "Types: deb deb-src", fields, flags=re.M))
    return "\n\n".join(part.strip() for part in paragraphs) + "\n"


def have_source(folder: Path, name: str, version: str) -> bool:
    """Return whether a source package is there, its .dsc file and all that this lists."""
    path = folder / f"{name}_{version.split(':', 1)[-1]}.dsc"
    if not path.exists():
        return False
    listed = _LISTED.findall(path.read_text(encoding="utf-8", errors="replace"))
    places = [(folder / inner, int(size)) for size, inner in listed]
    return all(place.exists() and place.stat().st_size == size for place, size in places)


def have_binary(folder: Path, name: str, version: str) -> bool:
    """Return whether a binary package is there, and whole: apt writes under the final name."""
    paths = folder.glob(f"{name}_{version.replace(':', '%3a')}_*.deb")
    return any(_is_whole(path) for path in paths)


def _is_whole(path: Path) -> bool:
    """Return whether the members of an `ar` archive fill it to its end."""
    with path.open("rb") as file:
        at = len(file.read(8))
        while len(head := file.read(60)) == 60 and head[48:58].strip().isdigit():
            size = int(head[48:58])
            at += 60 + size + size % 2
            file.seek(at)
        return at == path.stat().st_size
