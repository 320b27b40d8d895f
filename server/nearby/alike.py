"""Lines of other files that are like those around a cursor, and what follows them.

The measure is Copilot's, Jaccard's of the sets of words; that what follows is shown as well is
RepoCoder's (arXiv 2303.12570). Definitions of the names that stand near the cursor, which the
embedded model was trained with, were measured too, and gave nothing at some 60 places: see
`benchmarks/bench_other_files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Lines before the cursor and behind it that others are to be like, and the least likeness.
QUERY_LINES, LINES_BEHIND, LEAST_ALIKE = 10, 2, 0.2
# Of one file.
MOST_LINES, MOST_CHARS = 24, 1200
MOST_FILES = 2
_WORD = re.compile(r"\w+")


class Chunk(NamedTuple):
    """Whole lines of another file, each with its end."""

    path: str
    text: str


def alike(text: str, cursor: int, others: Iterable[tuple[str, str]]) -> list[Chunk]:
    r"""Return the lines that are most like those around a cursor, of two files at most.

    Args:
        text: the document.
        cursor: in code points.
        others: path and text of the files to choose from, "\n" at the ends of their lines; of two
            that are as good the first is taken.
    """
    query = text[:cursor].splitlines()[-QUERY_LINES:]
    query += text[cursor:].splitlines()[1 : 1 + LINES_BEHIND]
    wanted = {word for line in query for word in _WORD.findall(line)}
    scored: list[tuple[float, str, list[str], int]] = []
    for path, content in others:
        lines = content.split("\n")
        score, at = _best(lines, wanted)
        if score >= LEAST_ALIKE:
            scored.append((score, path, lines, at))
    scored.sort(key=lambda each: -each[0])
    chosen: list[Chunk] = []
    for _, path, lines, at in scored[:MOST_FILES]:
        shown = ""
        for line in lines[at : at + MOST_LINES]:
            if len(shown) + len(line) + 1 > MOST_CHARS:
                break
            shown += line + "\n"
        if shown.strip():
            chosen.append(Chunk(path, shown.strip("\n") + "\n"))
    return chosen


def _best(lines: list[str], wanted: set[str]) -> tuple[float, int]:
    """Return how alike the best lines are, from 0 to 1, and where they begin."""
    words = [set(_WORD.findall(line)) for line in lines]
    best, found = 0.0, 0
    for at in range(len(lines)):
        have = set[str]().union(*words[at : at + QUERY_LINES])
        num_shared = len(have & wanted)
        score = num_shared / max(1, len(have) + len(wanted) - num_shared)
        if score > best:
            best, found = score, at
    return best, found
