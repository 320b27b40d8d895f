"""Where a middle lies: kinds of spans, how often each is drawn, and the drawing.

Spans follow the syntax, as in arXiv 2412.16589 ("Improving FIM Code Completions via Context &
Curriculum Based Learning"), beside the lines and characters of arXiv 2207.14255 (FIM).
"""

from __future__ import annotations

import bisect
import random
from typing import NamedTuple

from .syntax import Source

# In the order of their numbers in a shard.
KINDS = (
    "plain",  # no middle at all
    "eol",  # the rest of a line
    "line",
    "lines",  # two to seven
    "block",  # statements
    "body",  # of a function, after its docstring
    "args",
    "expr",  # what is assigned or returned
    "doc",
    "import",
    "random",  # from any character to any other
)
Mix = dict[str, float]
# Two to seven lines from anywhere end where nothing in the text says so: few of them.
SHORT: Mix = {
    "eol": 0.18,
    "line": 0.18,
    "lines": 0.08,
    "block": 0.19,
    "body": 0.15,
    "args": 0.08,
    "expr": 0.06,
    "doc": 0.02,
    "random": 0.05,
    "import": 0.01,
}
LONG: Mix = {
    "eol": 0.12,
    "line": 0.13,
    "lines": 0.08,
    "block": 0.27,
    "body": 0.27,
    "args": 0.05,
    "expr": 0.03,
    "doc": 0.01,
    "random": 0.03,
    "import": 0.01,
}
SMALL: Mix = {
    "eol": 0.22,
    "line": 0.43,
    "lines": 0.08,
    "block": 0.10,
    "body": 0.07,
    "args": 0.04,
    "expr": 0.04,
    "random": 0.02,
}
MAX_CHARS = 2200  # of a middle

_SYNTACTIC = ("block", "body", "args", "expr", "doc", "import")
_MANY_CHILDREN = 400  # of a block that is data rather than statements


class Span(NamedTuple):
    """A middle: its kind, one of `KINDS`, and where it starts and ends, in characters."""

    kind: str
    start: int
    end: int


def pick_span(rng: random.Random, source: Source, a: int, b: int, mix: Mix) -> Span | None:
    """Draw a middle inside of the window [a, b); None if it offers nothing.

    Args:
        rng: decides; the same state gives the same span.
        source: the text.
        a: first character of the window.
        b: character after it.
        mix: kind to how often it is drawn.
    """
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind in _SYNTACTIC:
        if span := _syntactic(rng, source, a, b, kind):
            return Span(kind, *span)
        kind = rng.choice(("eol", "line", "lines"))
    if kind == "random":
        size = max(1, min(b - a - 1, int(rng.lognormvariate(4.2, 1.1)), MAX_CHARS))
        start = rng.randrange(a, b - size)
        return Span(kind, start, start + size)
    span = _by_lines(rng, source, a, b, kind)
    return Span(kind, *span) if span else None


def _syntactic(
    rng: random.Random, source: Source, a: int, b: int, kind: str
) -> tuple[int, int] | None:
    """Return a span of a syntactic kind in the window, with the cursor where people ask."""
    is_block = kind == "block"
    span = _statements(rng, source, a, b) if is_block else _listed(rng, source, a, b, kind)
    if span is None:
        return None
    text, (start, end) = source.text, span
    if kind in ("args", "expr", "import"):
        if rng.random() < 0.3:  # the cursor inside the expression
            start += rng.randrange(0, end - start)
        return start, end
    if kind == "doc" and rng.random() < 0.7:
        return start + rng.randrange(1, max(2, (end - start) // 2)), end
    where = rng.random()
    first_end = text.find("\n", start, end)
    first_end = end if first_end < 0 else first_end
    if where < 0.25 and first_end > start:  # inside of the first line
        start = rng.randrange(start, first_end)
    elif where < 0.45:  # at its beginning, before the indentation
        start = max(a, text.rfind("\n", 0, start) + 1)
    if rng.random() < 0.2 and end < b and text[end] == "\n":
        end += 1
    return start, end


def _listed(
    rng: random.Random, source: Source, a: int, b: int, kind: str
) -> tuple[int, int] | None:
    """Return one of the spans that the queries found."""
    spans = source.spans.get(kind, [])
    i, j = bisect.bisect_left(spans, (a + 1,)), bisect.bisect_left(spans, (b,))
    for _ in range(6 if i < j else 0):
        start, end = spans[rng.randrange(i, j)]
        if end <= b and 2 <= end - start <= MAX_CHARS:
            return start, end
    return None


def _statements(rng: random.Random, source: Source, a: int, b: int) -> tuple[int, int] | None:
    """Return a few statements of a block, or (mostly) all from one to the block's end."""
    blocks = source.blocks
    low, high = (bisect.bisect_left(blocks, x, key=lambda block: block[0]) for x in (a, b))
    first = low - 1 if blocks and blocks[0][0] < a else low  # the module itself, begun before
    for _ in range(8 if first < high else 0):
        i = rng.randrange(first, high)
        node = blocks[0 if i < low else i][2]
        if node.child_count >= _MANY_CHILDREN:
            continue
        # The name of a guard is an identifier that stands beside what it guards.
        statements = [
            n for n in node.named_children if "comment" not in n.type and n.type != "identifier"
        ]
        extents = [source.extent(n) for n in statements]
        extents = [x for x in extents if a < x[0] and x[1] <= b]
        if not extents:
            continue
        i = rng.randrange(len(extents))
        j = len(extents) - 1 if rng.random() < 0.6 else min(len(extents) - 1, i + rng.randrange(4))
        start, end = extents[i][0], extents[j][1]
        if "\n" in source.text[start:end] and end - start <= MAX_CHARS:
            return start, end
    return None


def _by_lines(
    rng: random.Random, source: Source, a: int, b: int, kind: str
) -> tuple[int, int] | None:
    """Return the rest of a line, a line, or two to seven lines."""
    text, starts = source.text, source.starts
    low, high = bisect.bisect_left(starts, a), bisect.bisect_left(starts, b)
    for _ in range(12 if low < high else 0):
        k = rng.randrange(low, high)
        first = starts[k]
        end = starts[k + 1] - 1 if k + 1 < len(starts) else len(text)
        line = text[first:end]
        if not line.strip() or end > b or _passed_over(rng, source, k, line.strip()):
            continue
        indented = first + len(line) - len(line.lstrip())
        if kind == "eol":
            start = _inside_line(rng, text, indented, end)
            last = k + rng.randrange(1, 5) if rng.random() < 0.12 else k
        else:
            start = first if rng.random() < 0.35 else indented
            last = k + rng.randrange(1, 7) if kind == "lines" else k
        if last > k:
            end = _end_of_lines(source, k, last, b)
        if kind != "eol" and rng.random() < 0.25 and end < b and text[end] == "\n":
            end += 1
        if end > start:
            return start, end
    return None


def _passed_over(rng: random.Random, source: Source, number: int, line: str) -> bool:
    """Return whether a line is drawn anew: mostly prose and brackets, half of the imports."""
    is_dull = (
        line.startswith(source.dull) or number in source.prose or not any(map(str.isalnum, line))
    )
    share = 0.9 if is_dull else 0.5 if line.startswith(source.imports) else 0
    return rng.random() < share


def _inside_line(rng: random.Random, text: str, start: int, end: int) -> int:
    """Return a place in a line, often behind a sign that makes one ask."""
    at = rng.randrange(start, end)
    if rng.random() < 0.4:
        marks = [i + 1 for i in range(start, end - 1) if text[i] in " (=.,[:{"]
        at = rng.choice(marks) if marks else at
    return at


def _end_of_lines(source: Source, first: int, last: int, b: int) -> int:
    """Return the end of line `last` or of an earlier one in the window, without blank lines."""
    text, starts = source.text, source.starts
    last = min(last, len(starts) - 2)
    while last > first and starts[last + 1] - 1 > b:
        last -= 1
    end = starts[last + 1] - 1
    inside = text[starts[first] : end]
    return end - (len(inside) - len(inside.rstrip()))
