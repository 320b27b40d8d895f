"""Python's own parser as a judge: tree-sitter's grammar forgives what Python does not.

It takes a wrong indentation, a header without a body and Python 2's print for granted.
"""

from __future__ import annotations

import ast
import re
import warnings

_INDENT = re.compile(r"[ \t]*(?=[^ \t\n#])")


def parses(text: str, above: str = "") -> bool:
    """Whether this Python takes `text` for a module or a part of one.

    Args:
        text: with line feeds at its line ends.
        above: what a part stands in, see `enclosing`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Half of a surrogate pair is no Python, but may well stand in a text being edited.
            ast.parse(above + text.encode("utf-8", "replace").decode("utf-8"))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def enclosing(text: str, before: str) -> str:
    """Return headers that `text` may stand under, as it was cut out of blocks.

    Args:
        text: a part of a module that begins with a whole line.
        before: what comes before it.
    """
    first = _INDENT.search(text)
    indent = first.group() if first else ""
    headers = []
    lines = before[-100_000:].split("\n")
    while indent and lines:
        line = _INDENT.match(lines.pop())
        if line and len(line.group()) < len(indent):
            indent = line.group()
            headers.append(f"{indent}if 1:\n")
    return "".join(reversed(headers))
