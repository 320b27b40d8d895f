"""Cross-file context: chunks of other files of a package that answer what a window asks.

After arXiv 2412.16589, which adds the definitions that the symbols of a middle refer to.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator

from .documents import COMPILED_POOL_OF, Document, language_of

_MOST_CHARS = 1500  # of a chunk

_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]{3,}")
_IMPORTS = re.compile(
    r"^\s*from\s+([\w.]+)\s+import\s+\(?([\w, ]*)|(?:from|require\()\s*['\"]\.{1,2}/([^'\"]+)['\"]",
    re.M,
)
_DEFINITIONS = re.compile(
    r"^[ \t]*(?:export\s+)?(?:default\s+)?(?:async\s+)?"
    r"(?:def|class|function|const|interface|type)\s+(\w+)",
    re.M,
)
# The same in Go, Rust, Java, C and C++. Go imports folders; its files know those beside them.
_COMPILED_IMPORTS = re.compile(
    r"^\s*#\s*include\s+[\"<](?:[^\">]*/)?([\w-]+)\.|^import\s+(?:static\s+)?[\w.]*\.(\w+);|"
    r"^\s*(?:pub\s+)?mod\s+(\w+);|^\s*use\s+(?:crate|super|self)::(\w+)",
    re.M,
)
_COMPILED_DEFINITIONS = re.compile(
    r"^[ \t]*(?:(?:pub(?:\([^)]*\))?|public|private|protected|static|final|abstract|unsafe|async|"
    r"const|typedef)\s+)*(?:func(?:\s*\([^)]*\))?|fn|struct|enum|trait|type|class|interface|union|"
    r"record)\s+(\w+)",
    re.M,
)


class Neighbours:
    """All documents, found by folder and by the stem of their names."""

    def __init__(self, documents: list[Document]) -> None:
        """Index the documents."""
        self.documents = documents
        self._by_folder: dict[tuple[str, str], list[int]] = {}
        self._by_stem: dict[tuple[str, str], list[int]] = {}
        for number, (package, path, _) in enumerate(documents):
            folder, name = os.path.split(path)
            self._by_folder.setdefault((package, folder), []).append(number)
            self._by_stem.setdefault((package, name.split(".")[0]), []).append(number)

    def chunks(
        self, rng: random.Random, number: int, window: str, middle: str
    ) -> list[tuple[str, str]]:
        """Return one or two (path, chunk) of other files.

        A chunk begins at a definition of a name that the middle uses, if a candidate file has one;
        else the chunk that shares most identifiers with the window is taken.

        Args:
            rng: decides.
            number: of the document that the window is of.
            window: its text.
            middle: the part that is to be filled in.
        """
        wanted, asked = set(_IDENTIFIER.findall(window)), set(_IDENTIFIER.findall(middle))
        scored: list[tuple[float, int, str]] = []
        for i in self._candidates(rng, number) - {number}:
            scored += _scored(rng, i, self.documents[i], wanted, asked)
        scored.sort(reverse=True)
        chosen: list[tuple[str, str]] = []
        used: set[int] = set()
        for _, i, chunk in scored:
            if i not in used and len(chosen) < rng.choice((1, 1, 2)):
                used.add(i)
                chosen.append((self.documents[i].path, chunk.strip("\n") + "\n"))
        return chosen

    def _candidates(self, rng: random.Random, number: int) -> set[int]:
        """Return up to five files that the document imports and three of its folder."""
        package, path, text = self.documents[number]
        found: set[int] = set()
        for stem in _imported_stems(path, text):
            hits = self._by_stem.get((package, stem), ())
            if 0 < len(hits) <= 4:
                found.update(hits)
        found = set(rng.sample(sorted(found), min(5, len(found))))
        near = self._by_folder[package, os.path.dirname(path)]
        return found | set(rng.sample(near, min(3, len(near))))


def _imported_stems(path: str, text: str) -> Iterator[str]:
    if language_of(path) in COMPILED_POOL_OF:
        for match in _COMPILED_IMPORTS.finditer(text):
            yield next(filter(None, match.groups()))
        return
    for match in _IMPORTS.finditer(text):
        module, names, relative = match.groups()
        if module:
            yield module.rsplit(".", 1)[-1]
            yield from names.replace(" ", "").split(",")[:3]
        if relative:
            yield relative.rsplit("/", 1)[-1].split(".")[0]


def _scored(
    rng: random.Random, number: int, document: Document, wanted: set[str], asked: set[str]
) -> Iterator[tuple[float, int, str]]:
    """Yield score, number and chunk: above 1 for a definition asked for, else by what is shared."""
    text, is_compiled = document.text, language_of(document.path) in COMPILED_POOL_OF
    definitions = _COMPILED_DEFINITIONS if is_compiled else _DEFINITIONS
    for match in definitions.finditer(text):
        if match[1] in asked:
            part = text[match.start() : match.start() + _MOST_CHARS].split("\n")
            chunk = "\n".join(part[: rng.randrange(4, 24)])
            yield 1.0 + rng.random(), number, chunk
            break
    lines = text.split("\n")
    for _ in range(2):
        k = rng.randrange(0, max(1, len(lines) - 15))
        chunk = "\n".join(lines[k : k + rng.randrange(8, 32)])[:_MOST_CHARS]
        if have := set(_IDENTIFIER.findall(chunk)):
            yield len(have & wanted) / (20 + len(have)), number, chunk
