"""Places in source files with a middle taken out: what controllers learn from."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..syntax.languages import language_of
from ..wire.errors import BadRequest

_MAX_BYTES, _MAX_LINE = 300_000, 500
# What nobody writes by hand.
_LEFT_OUT = {"node_modules", "__pycache__", "dist", "build", "vendor", "site-packages"}
# Of four middles one goes on over so many lines at most.
_MOST_LINES = 4
KINDS = ("line", "rest", "gap")


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor in a file from which a text was taken out.

    Attributes:
        path: of the file.
        text: without the middle.
        offset: of the cursor, in code points.
        middle: what stood there.
        kind: "line": from the line's indentation on; "rest": from within a line; "gap": other text
            follows on the line.
    """

    path: str
    text: str
    offset: int
    middle: str
    kind: str


def source_files(paths: Iterable[str], languages: Iterable[str]) -> list[tuple[str, str]]:
    """Return path and text of the source files under some paths, in order of path.

    Args:
        paths: files or folders; hidden folders and what tools write are left out.
        languages: LSP identifiers that a model knows; empty takes all that are known here.

    Raises:
        BadRequest: a path does not exist, or nothing of these languages is there.
    """
    wanted = set(languages)
    found = []
    for path in paths:
        if not os.path.exists(path):
            raise BadRequest(f"{path} does not exist; give files or folders of source code")
        for file in sorted(_files(Path(path))):
            language = language_of("", file.name)
            if language == "plaintext" or (wanted and language not in wanted):
                continue
            text = _read(file)
            if text is not None:
                found.append((str(file), text))
    if not found:
        known = ", ".join(sorted(wanted)) or "any known language"
        raise BadRequest(
            f"no source file of {known} under {', '.join(paths)}; give a folder that has some"
        )
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if name[0] != "." and name not in _LEFT_OUT]
        yield from (Path(folder, name) for name in files)


def _read(file: Path) -> str | None:
    """Return a file's text with line feeds; None if it is too large, unreadable or generated."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            return None
        text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if max(map(len, text.split("\n"))) <= _MAX_LINE else None


def draw(files: list[tuple[str, str]], count: int, seed: int) -> list[Place]:
    """Return places, files by the root of their size, kinds in turn; fewer if files are tiny.

    Args:
        files: path and text of each.
        count: how many.
        seed: of the draw.
    """
    rng = random.Random(seed)
    weights = [len(text) ** 0.5 for _, text in files]
    found: dict[tuple[str, int], Place] = {}
    for attempt in range(20 * count):
        path, text = rng.choices(files, weights)[0]
        place = _place(rng, path, text, KINDS[attempt % len(KINDS)])
        if place is not None:
            found.setdefault((path, place.offset), place)
        if len(found) == count:
            break
    return list(found.values())


def _place(rng: random.Random, path: str, text: str, kind: str) -> Place | None:
    lines = text.split("\n")
    row = rng.randrange(len(lines))
    line = lines[row].rstrip()
    indented = len(line) - len(line.lstrip())
    if len(line) - indented < 4:
        return None
    start = sum(len(each) + 1 for each in lines[:row])
    begin, end = start + indented, start + len(line)
    if kind != "line":
        begin = rng.randrange(begin + 1, end - 1)
    if kind == "gap":
        end = rng.randrange(begin + 1, end)
    elif rng.random() < 0.25:
        last = min(len(lines), row + rng.randrange(2, _MOST_LINES + 1))
        end = start + len("\n".join(lines[row:last]).rstrip())
    return Place(path, text[:begin] + text[end:], begin, text[begin:end], kind)
