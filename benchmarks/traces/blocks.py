"""Functions as blocks of whole lines, and moves of them past their neighbours."""

from __future__ import annotations

from collections.abc import Iterator

from tree_sitter import Node

from keyturn.engine.syntax.languages import parser_of

from .hunks import Hunk

GRAMMARS = {"py": "python", "js": "javascript", "ts": "typescript"}
_FUNCTIONS = {
    "function_definition", "decorated_definition", "function_declaration", "method_definition",
    "generator_function_declaration",
}  # fmt: skip
_EXPORTS = {"export_statement"}
_FARTHEST = 3  # neighbours that a function is moved past


def moves(text: str, language: str, largest: int) -> Iterator[list[Hunk]]:
    """Yield moves of one function down or up, as the hunks that cut and paste it."""
    for family in families(text, language):
        # The last one's lines end where nothing says that they do: it stays.
        for number in range(len(family) - 1):
            start, end = family[number], family[number + 1]
            if end - start > largest:
                continue
            for other in range(
                max(0, number - _FARTHEST), min(len(family), number + _FARTHEST + 1)
            ):
                if other not in (number, number + 1):
                    at = family[other]
                    yield sorted(
                        (Hunk(start, end, ""), Hunk(at, at, text[start:end])), key=lambda h: h.start
                    )


def _nodes(source: bytes, language: str) -> Iterator[Node]:
    """Yield the named nodes of a file, each before those in it."""
    nodes = [parser_of(GRAMMARS[language]).parse(source).root_node]
    while nodes:
        node = nodes.pop()
        nodes.extend(reversed(node.named_children))
        yield node


def families(text: str, language: str) -> Iterator[list[int]]:
    """Yield for each run of functions side by side where the lines of each begin."""
    source = text.encode()
    places = code_points(source)
    for node in _nodes(source, language):
        run: list[int] = []
        above = None  # where the comments right above begin
        for child in node.named_children:
            if child.type == "comment":
                above = child if above is None else above
                continue
            first, above = (child if above is None else above), None
            is_function = child.type in _FUNCTIONS or (
                child.type in _EXPORTS and any(c.type in _FUNCTIONS for c in child.named_children)
            )
            start = text.rfind("\n", 0, places[first.start_byte]) + 1
            if is_function and not text[start : places[first.start_byte]].strip():
                run.append(start)
                continue
            if len(run) > 1:
                yield run
            run = []
        if len(run) > 1:
            yield run


def functions(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Yield the whole lines, [start, end), of each function that has them for itself."""
    source = text.encode()
    places = code_points(source)
    for node in _nodes(source, language):
        if node.type not in _FUNCTIONS:
            continue
        start = text.rfind("\n", 0, places[node.start_byte]) + 1
        end = text.find("\n", places[node.end_byte] - 1) + 1
        around = text[start : places[node.start_byte]] + text[places[node.end_byte] : end]
        if end and not around.strip(" \t\n;,"):
            yield start, end


def code_points(source: bytes) -> list[int]:
    """Return for each byte of UTF-8, and for the end, which code point it belongs to."""
    places, count = [], -1
    for byte in source:
        count += byte & 0xC0 != 0x80
        places.append(count)
    return [*places, count + 1]
