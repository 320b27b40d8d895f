"""Which files a document imports, as paths that may exist; nothing is looked up."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

ENDINGS = (".ts", ".tsx", ".mts", ".js", ".jsx", ".mjs", ".cjs")
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.M)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w.]+)", re.M)
_SCRIPT = re.compile(r"(?:\bfrom|\bimport|\brequire\()\s*['\"](\.{1,2}/[^'\"]*)['\"]")
# Folders above the document's in which a module's name may begin.
_MOST_UP = 4


def imported(path: str, text: str) -> Iterator[tuple[str, ...]]:
    """Yield for each import the paths that it may mean, the likeliest first.

    Args:
        path: of the document, with "/" between its parts.
        text: the document: Python, else JavaScript or TypeScript.
    """
    folder = posixpath.dirname(path)
    if not path.endswith((".py", ".pyi")):
        for match in _SCRIPT.finditer(text):
            yield tuple(_script(posixpath.normpath(posixpath.join(folder, match[1]))))
        return
    for match in _FROM.finditer(text):
        bases = tuple(_modules(match[1], folder))
        names = re.findall(r"\w+", re.sub(r"#.*|\bas\s+\w+", "", match[2]))
        yield tuple(file for base in bases for file in _module(base))
        for name in names:
            yield tuple(f"{base}/{name}.py" for base in bases)
    for match in _IMPORT.finditer(text):
        yield tuple(file for base in _modules(match[1], folder) for file in _module(base))


def _modules(name: str, folder: str) -> Iterator[str]:
    """Yield where a module may be: where its dots say, else below a folder above the document."""
    num_dots = len(name) - len(name.lstrip("."))
    rest = name.lstrip(".").replace(".", "/")
    for _ in range(num_dots - 1):
        folder = posixpath.dirname(folder)
    if num_dots:
        yield posixpath.join(folder, rest).rstrip("/")
        return
    for _ in range(_MOST_UP):
        yield posixpath.join(folder, rest)
        folder = posixpath.dirname(folder)


def _module(base: str) -> tuple[str, str]:
    return f"{base}.py", f"{base}/__init__.py"


def _script(target: str) -> Iterator[str]:
    stem, ending = posixpath.splitext(target)
    yield target
    for each in ENDINGS:
        yield (stem if ending in ENDINGS else target) + each
    for each in ENDINGS:
        yield f"{target}/index{each}"
