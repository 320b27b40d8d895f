"""Definitions of names in other files, as training chooses them, but by names that are known.

Training's own choice (`training/data/cross_file.py`) looks into the middle that is to be found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from keyturn.server.nearby.alike import Chunk

# Lines around the cursor whose names are looked up, and after how many lines half of their weight
# is left.
NEAR_BEFORE, NEAR_AFTER, HALVED_AFTER = 30, 10, 6
MOST_LINES, MOST_FILES = 24, 2  # as in training
_NAME = re.compile(r"[A-Za-z_$][\w$]{2,}")
_PYTHON = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.M)
_SCRIPT = re.compile(
    r"^[ \t]*(?:export\s+)?(?:default\s+)?(?:declare\s+)?(?:abstract\s+)?(?:async\s+)?"
    r"(?:class|function\*?|interface|type|enum)\s+([\w$]+)"
    r"|^(?:export\s+)?(?:const|let|var)\s+([\w$]+)"
    r"|^(?:module\.)?exports\.([\w$]+)\s*=|^[\w$]+\.prototype\.([\w$]+)\s*="
    r"|^[ \t]+(?:(?:public|private|protected|static|readonly|async|override|get|set)\s+)*"
    r"([\w$]+)\s*\([^()\n]*\)[^;{}\n]*\{[ \t]*$",
    re.M,
)
_KEYWORDS = {"if", "for", "while", "switch", "catch", "function", "return", "constructor", "with"}


def definitions(
    path: str, text: str, names: Mapping[str, float], others: list[Chunk]
) -> list[Chunk]:
    """Return the definitions of the weightiest names, of one or two files, the best first.

    Args:
        path: of the document.
        text: the document; what it defines itself is not looked for.
        names: weights of names, as from `near_names`.
        others: the files to choose from.
    """
    own = {name for name, _ in _defined(path, text)}
    holders: Counter[str] = Counter()
    found: list[tuple[float, str, Chunk, int]] = []
    for other in others:
        defined = list(_defined(other.path, other.text))
        holders.update({name for name, _ in defined})
        found += [(names[n], n, other, at) for n, at in defined if n in names and n not in own]
    found.sort(key=lambda each: -each[0])
    chosen: dict[str, Chunk] = {}
    for _, name, other, at in found:
        # What several files define is hardly ever meant.
        if len(chosen) < MOST_FILES and other.path not in chosen and holders[name] <= MOST_FILES:
            chosen[other.path] = Chunk(other.path, _definition_at(other.text, at))
    return list(chosen.values())


def near_names(text: str, cursor: int) -> dict[str, float]:
    """Return the names around the cursor, each with the weight of its nearest line."""
    before = text[:cursor].split("\n")[-NEAR_BEFORE:]
    after = text[cursor:].split("\n")[:NEAR_AFTER]
    found: dict[str, float] = {}
    for lines in (reversed(before), after):
        for distance, line in enumerate(lines):
            for name in _NAME.findall(line):
                weight = math.exp2(-distance / HALVED_AFTER)
                found[name] = max(found.get(name, 0.0), weight)
    return found


def _defined(path: str, text: str) -> Iterator[tuple[str, int]]:
    """Yield each name that a text defines, and where its line begins."""
    for match in (_PYTHON if path.endswith(".py") else _SCRIPT).finditer(text):
        name = next(filter(None, match.groups()))
        if name not in _KEYWORDS:
            yield name, match.start()


def _definition_at(text: str, at: int) -> str:
    """Return a definition from its first line on, to where its indentation ends."""
    lines = text[at:].split("\n")[:MOST_LINES]
    indent = len(lines[0]) - len(lines[0].lstrip())
    kept = lines[:1]
    for line in lines[1:]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= indent and not line.lstrip().startswith(tuple(")]}")):
            break
        kept.append(line)
    return "\n".join(kept).strip("\n") + "\n"
