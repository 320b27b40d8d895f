"""Where the texts come from: releases of packages that the embedded model was not trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from quality import fim_fetch

# Reserved for evaluation as in `fim_fetch`; oldest first, each changed into the next.
CHAINS = {
    "attrs": "20.3.0 21.4.0 22.2.0 23.2.0 24.3.0 25.3.0 25.4.0 26.1.0",
    "starlette": "0.20.4 0.27.0 0.32.0 0.38.6 0.46.2 1.0.0 1.3.1 1.5.1 1.7.0 1.9.0 1.10.0",
    "anyio": "3.6.2 3.7.1 4.2.0 4.4.0 4.6.1 4.8.0 4.10.0 4.12.1 4.14.2 4.16.0",
    "jinja2": "2.9.6 2.10.3 2.11.3 3.0.3 3.1.6",
    "rich": "10.16.2 11.2.0 12.3.0 12.6.0 13.3.5 13.5.3 13.7.1 13.9.4 14.1.0 14.3.4 15.0.0",
    "werkzeug": "0.16.1 1.0.1 2.0.3 2.1.2 2.2.3 2.3.8 3.0.6 3.1.9",
    "express": "4.16.4 4.17.3 4.18.3 4.20.0 4.22.3 5.0.0 5.1.0 5.2.0 5.3.0",
    "koa": "2.7.0 2.11.0 2.13.4 2.14.2 2.16.4 3.0.3 3.1.2 3.2.0 3.3.0",
    "fastify": "4.22.0 4.26.2 4.29.1 5.0.0 5.2.2 5.4.0 5.6.2 5.8.5 5.10.0 5.12.8",
    "zod": "3.25.76 4.0.0 4.1.0 4.2.0 4.3.0 4.4.0 4.5.4 4.6.7",
    "undici": "6.21.0 7.0.0 7.5.0 7.10.0 7.14.0 7.18.2 7.22.0 7.25.0 7.28.0 7.30.2",
}
_NPM = {requirement.split("@")[0] for requirement in fim_fetch.NPM}
_SHORTEST, _LONGEST = 2_500, 80_000  # of a file, in code points
_LICENCE = re.compile(r"^License(?:-Expression)?: (\S.*)$", re.M)
_CLASSIFIER = re.compile(r"^Classifier: License :: OSI Approved :: (.*)$", re.M)


class Source(NamedTuple):
    """A file in two releases of a package; `old` is None where only the newer one counts."""

    package: str
    version: str
    path: str
    language: str
    old: str | None
    text: str


def release(package: str, version: str) -> str:
    """Return NAME==VERSION or NAME@VERSION."""
    return f"{package}{'@' if package in _NPM else '=='}{version}"


def pairs(package: str, cache: Path) -> Iterator[Source]:
    """Yield the files that two releases one after the other have, and have differently."""
    versions = CHAINS[package].split()
    for before, after in reversed(list(zip(versions, versions[1:], strict=False))):
        old, new = files(release(package, before), cache), files(release(package, after), cache)
        for path in sorted(old.keys() & new.keys()):
            if old[path] != new[path]:
                yield source(package, f"{before} to {after}", path, old[path], new[path])


def singles(package: str, cache: Path) -> Iterator[Source]:
    """Yield the files of the newest release, then those of the oldest."""
    versions = CHAINS[package].split()
    for version in (versions[-1], versions[0]):
        for path, text in files(release(package, version), cache).items():
            yield source(package, version, path, None, text)


def source(package: str, version: str, path: str, old: str | None, text: str) -> Source:
    """Return a source; its language is that of its file."""
    return Source(package, version, path, fim_fetch.LANGUAGES[Path(path).suffix], old, text)


@lru_cache(maxsize=64)
def files(requirement: str, cache: Path) -> dict[str, str]:
    """Return the files of a release that people wrote and that fill a window, by path."""
    return {
        path: text
        for _, path, text in fim_fetch.source_files(requirement, cache)
        if _SHORTEST <= len(text) <= _LONGEST
    }


def licence(requirement: str, cache: Path) -> str:
    """Return what a release says that its licence is."""
    for path, data in fim_fetch.members(fim_fetch.fetched(requirement, cache)):
        if path.endswith(".dist-info/METADATA"):
            head = data.decode("utf-8", "replace").split("\n\n")[0]
            found = _LICENCE.search(head) or _CLASSIFIER.search(head)
            return found[1] if found else "unknown"
        if path == "package.json":
            return str(json.loads(data).get("license", "unknown"))
    return "unknown"
