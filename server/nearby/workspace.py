"""Files of the workspace beside a document: those it imports and those of its folder.

Read when they are needed, from within the workspace's folders only, so many bytes at most, in a
thread of its own: never on the way of a request.
"""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .alike import Chunk
from .imports import ENDINGS, imported

MOST_FILES, MOST_BYTES, MOST_BYTES_TOGETHER = 24, 64_000, 400_000
MOST_SECONDS = 0.5
# A longer line is of no text that somebody writes; nor is what lies in such folders.
MOST_LINE_CHARS = 500
_NOT_WRITTEN = {"node_modules", "site-packages", "__pycache__", "dist", "build", "vendor"}
_MOST_LISTED = 1000
_PYTHON = (".py", ".pyi")
# So much of the document's own lines in another file, and it is a copy.
_COPY = 0.6
_FEWEST_CHARS = 20  # of a line that says something


def readable(path: str, roots: Sequence[str]) -> bool:
    """Whether a file may be shown: it lies, links followed, in one of those folders.

    Nor is anything hidden (".env"), or what nobody writes.

    Args:
        path: of the file.
        roots: real paths of the workspace's folders.
    """
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    for root in roots:
        below = real.removeprefix(root.rstrip(os.sep) + os.sep)
        parts = below.split(os.sep)
        if below != real and not any(
            part.startswith(".") or part in _NOT_WRITTEN for part in parts
        ):
            return True
    return False


def is_kin(path: str, other: str) -> bool:
    """Whether two files are in one language, or in two that import each other."""
    one, two = (posixpath.splitext(each)[1] for each in (path, other))
    return any(one in some and two in some for some in (ENDINGS, _PYTHON))


def beside(path: str, text: str, roots: Sequence[str]) -> Iterator[Chunk]:
    """Yield path and text of files that a document imports, then of those in its folder.

    Args:
        path: of the document's file.
        text: the document.
        roots: real paths of the workspace's folders; nothing outside of them is read.
    """
    deadline, left = time.monotonic() + MOST_SECONDS, MOST_BYTES_TOGETHER
    seen = {os.path.realpath(path)}
    num_found = 0
    for each in _paths(path, text):
        if num_found >= MOST_FILES or left <= 0 or time.monotonic() > deadline:
            return
        real = os.path.realpath(each)
        if real in seen or not is_kin(path, each) or not readable(each, roots):
            continue
        seen.add(real)
        content = _read(real, min(left, MOST_BYTES))
        if content is not None:
            num_found += 1
            left -= len(content)
            yield Chunk(each, content)


def is_copy(text: str, other: str) -> bool:
    """Whether another text is mostly this one: an old copy, or one that was built out of it."""
    lines = {line for line in text.splitlines() if len(line) > _FEWEST_CHARS}
    same = {line for line in other.splitlines() if line in lines}
    return len(same) > _COPY * len(lines)


def _paths(path: str, text: str) -> Iterator[str]:
    for choices in imported(path, text):
        found = next((each for each in choices if os.path.isfile(each)), None)
        if found is not None:
            yield found
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_LISTED), strict=False)]
    except OSError:
        return
    nearest = sorted(names, key=lambda one: (-len(os.path.commonprefix([one, name])), one))
    yield from (posixpath.join(folder, one) for one in nearest)


def _read(path: str, most: int) -> str | None:
    """Return a regular file's text, None if it is too long or nobody wrote it."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= most:
            return None
        text = Path(path).read_bytes()[: most + 1].decode("utf-8")
    except (OSError, ValueError):
        return None
    if len(text) > most or "\0" in text or max(map(len, text.split("\n"))) > MOST_LINE_CHARS:
        return None
    return text.replace("\r\n", "\n")
