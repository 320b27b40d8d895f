"""Where the syntax puts middles: spans found by tree-sitter queries, cut by `pick_span`."""

from __future__ import annotations

import bisect
import functools
import random

import numpy as np
import tree_sitter
import tree_sitter_javascript
import tree_sitter_python
import tree_sitter_typescript

KINDS = (
    "plain",
    "eol",
    "line",
    "lines",
    "block",
    "body",
    "args",
    "expr",
    "doc",
    "import",
    "random",
)
Mix = dict[str, float]
SHORT = Mix(
    eol=0.17,
    line=0.17,
    lines=0.15,
    block=0.19,
    body=0.15,
    args=0.06,
    expr=0.04,
    doc=0.02,
    random=0.04,
)
SHORT |= {"import": 0.01}
LONG = Mix(
    eol=0.10,
    line=0.10,
    lines=0.16,
    block=0.27,
    body=0.28,
    args=0.03,
    expr=0.02,
    doc=0.01,
    random=0.02,
)
LONG |= {"import": 0.01}
SMALL = Mix(
    eol=0.22, line=0.40, lines=0.13, block=0.09, body=0.06, args=0.04, expr=0.04, random=0.02
)
MAX_CHARS = 2200  # of a middle

_PYTHON = """
(block) @block (module) @block
(function_definition body: (block) @body)
(call arguments: (argument_list) @args)
(assignment right: (_) @expr) (augmented_assignment right: (_) @expr) (return_statement (_) @expr)
(string) @prose
(block . (expression_statement (string) @doc))
(import_statement) @import (import_from_statement) @import
"""
_SCRIPT = """
(statement_block) @block (program) @block (class_body) @block
(function_declaration body: (_) @body) (method_definition body: (_) @body)
(function_expression body: (_) @body) (arrow_function body: (statement_block) @body)
(arguments) @args
(variable_declarator value: (_) @expr) (assignment_expression right: (_) @expr)
(return_statement (_) @expr)
(comment) @prose (template_string) @prose
(import_statement) @import
"""
_LANGUAGES = {
    "py": (tree_sitter_python.language, _PYTHON),
    "js": (tree_sitter_javascript.language, _SCRIPT),
    "ts": (tree_sitter_typescript.language_typescript, _SCRIPT),
    "tsx": (tree_sitter_typescript.language_tsx, _SCRIPT),
}


@functools.cache
def _tools(language: str) -> tuple[tree_sitter.Parser, tree_sitter.Query]:
    make, query = _LANGUAGES[language]
    grammar = tree_sitter.Language(make())
    return tree_sitter.Parser(grammar), tree_sitter.Query(grammar, query)


class Source:
    """A text, the starts of its lines, its syntactic spans and the lines that lie inside prose."""

    def __init__(self, text: str, language: str) -> None:
        """Parse the text."""
        self.text = text
        self.starts = [0]
        at = text.find("\n")
        while at >= 0:
            self.starts.append(at + 1)
            at = text.find("\n", at + 1)
        self.spans: dict[str, list[tuple[int, int]]] = {}
        self.blocks: list[tuple[int, int, tree_sitter.Node]] = []
        self.prose: set[int] = set()
        self._parse(language)

    def _parse(self, language: str) -> None:
        data = self.text.encode()
        parser, query = _tools(language)
        self.tree = parser.parse(data)
        if len(data) == len(self.text):
            self.offset = lambda byte: byte
        else:  # tree-sitter counts bytes, everything here characters
            starts = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
            table = np.concatenate([[0], np.cumsum(starts)]).tolist()
            self.offset = table.__getitem__
        for kind, nodes in tree_sitter.QueryCursor(query).captures(self.tree.root_node).items():
            if kind == "prose":
                for node in nodes:
                    first, last = node.start_point[0], node.end_point[0]
                    if last > first:
                        self.prose.update(range(first, last + 1))
                        if language != "py":
                            self.spans.setdefault("doc", []).append(self._extent(node))
                continue
            found = [(*self._extent(node), node) for node in nodes if not node.has_error]
            if kind == "block":
                self.blocks = sorted(found, key=lambda f: f[:2])
                continue
            spans = []
            for start, end, node in found:
                if kind == "args" or kind == "body" and self.text.startswith("{", start):
                    start, end = start + 1, end - 1
                    if kind == "body":
                        inside = self.text[start:end]
                        start += len(inside) - len(inside.lstrip())
                        end -= len(inside) - len(inside.rstrip())
                elif kind == "body":  # after the docstring
                    inner = node.named_children
                    has_text = len(inner) > 1 and inner[0].type == "expression_statement"
                    if (
                        has_text
                        and inner[0].named_children
                        and inner[0].named_children[0].type == "string"
                    ):
                        start = self.offset(inner[1].start_byte)
                if end - start >= 2:
                    spans.append((start, end))
            self.spans[kind] = sorted(spans)
        if language != "py":
            self.spans["doc"] = sorted(self.spans.get("doc", ()))

    def _extent(self, node: tree_sitter.Node) -> tuple[int, int]:
        return self.offset(node.start_byte), self.offset(node.end_byte)


def _statements(rng: random.Random, source: Source, a: int, b: int) -> tuple[int, int] | None:
    """Return one to five statements of a block, or all from some statement to the block's end."""
    blocks = source.blocks
    low, high = (
        bisect.bisect_left(blocks, a, key=lambda x: x[0]),
        bisect.bisect_left(blocks, b, key=lambda x: x[0]),
    )
    outer = [i for i, block in enumerate(blocks[:1]) if block[0] < a]  # the module itself
    for _ in range(8):
        i = rng.randrange(low - len(outer), high) if high > low - len(outer) else -1
        if high <= low - len(outer):
            return None
        node = blocks[0 if i < low else i][2]
        extents = (
            [source._extent(n) for n in node.named_children if n.type != "comment"]
            if node.child_count < 400
            else []
        )
        extents = [x for x in extents if a < x[0] and x[1] <= b]
        if not extents:
            continue
        i = rng.randrange(len(extents))
        j = len(extents) - 1 if rng.random() < 0.3 else min(len(extents) - 1, i + rng.randrange(5))
        start, end = extents[i][0], extents[j][1]
        if "\n" in source.text[start:end] and end - start <= MAX_CHARS:
            return start, end
    return None


def _syntactic(
    rng: random.Random, source: Source, a: int, b: int, kind: str
) -> tuple[int, int] | None:
    """Return a span of a syntactic kind in the window, with the cursor where people ask."""
    text = source.text
    if kind == "block":
        span = _statements(rng, source, a, b)
        if span is None:
            return None
        start, end = span
    else:
        spans = source.spans.get(kind, ())
        i, j = bisect.bisect_left(spans, (a + 1,)), bisect.bisect_left(spans, (b,))
        for _ in range(6):
            if i >= j:
                return None
            start, end = spans[rng.randrange(i, j)]
            if end <= b and 2 <= end - start <= MAX_CHARS:
                break
        else:
            return None
    if kind in ("args", "expr", "import"):
        if rng.random() < 0.3:  # the cursor inside the expression
            start += rng.randrange(0, end - start)
        return start, end
    if kind == "doc" and rng.random() < 0.7:
        return start + rng.randrange(1, max(2, (end - start) // 2)), end
    where = rng.random()
    first_end = text.find("\n", start, end)
    first_end = end if first_end < 0 else first_end
    if where < 0.25 and first_end > start:
        start = rng.randrange(start, first_end)
    elif where < 0.45:
        start = max(a, text.rfind("\n", 0, start) + 1)
    if rng.random() < 0.2 and end < b and text[end] == "\n":
        end += 1
    return start, end


def _by_lines(
    rng: random.Random, source: Source, a: int, b: int, kind: str
) -> tuple[int, int] | None:
    """Return the rest of a line, a line, or two to seven lines."""
    text, starts = source.text, source.starts
    low, high = bisect.bisect_left(starts, a), bisect.bisect_left(starts, b)
    for _ in range(12):
        if high <= low:
            return None
        k = rng.randrange(low, high)
        start = starts[k]
        end = starts[k + 1] - 1 if k + 1 < len(starts) else len(text)
        line = text[start:end]
        body = line.strip()
        if not body or end > b:
            continue
        dull = (
            body.startswith(("#", "//", "*"))
            or k in source.prose
            or not any(map(str.isalnum, body))
        )
        if rng.random() < (0.9 if dull else 0.5 if body.startswith(("import ", "from ")) else 0):
            continue
        indented = start + len(line) - len(line.lstrip())
        if kind == "eol":
            start = rng.randrange(indented, end)
            if rng.random() < 0.4:  # behind a sign that makes one ask
                marks = [i + 1 for i in range(indented, end - 1) if text[i] in " (=.,[:{"]
                start = rng.choice(marks) if marks else start
            last = k + rng.randrange(1, 5) if rng.random() < 0.12 else k
        else:
            start = start if rng.random() < 0.35 else indented
            last = k + rng.randrange(1, 7) if kind == "lines" else k
        if last > k:
            last = min(last, len(starts) - 2)
            while last > k and starts[last + 1] - 1 > b:
                last -= 1
            end = starts[last + 1] - 1
            end -= len(text[start:end]) - len(text[start:end].rstrip())  # no blank lines at the end
        if kind != "eol" and rng.random() < 0.25 and end < b and text[end] == "\n":
            end += 1
        if end > start:
            return start, end
    return None


def pick_span(
    rng: random.Random, source: Source, a: int, b: int, mix: Mix
) -> tuple[str, int, int] | None:
    """Return (kind, start, end) of a middle inside the window [a, b), or None."""
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind in ("block", "body", "args", "expr", "doc", "import"):
        if span := _syntactic(rng, source, a, b, kind):
            return kind, *span
        kind = rng.choice(("eol", "line", "lines"))
    if kind == "random":
        size = max(1, min(b - a - 1, int(rng.lognormvariate(4.2, 1.1)), MAX_CHARS))
        start = rng.randrange(a, b - size)
        return kind, start, start + size
    span = _by_lines(rng, source, a, b, kind)
    return (kind, *span) if span else None
