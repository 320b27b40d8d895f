"""Small programs cut out of larger files: functions that stand on their own."""

from __future__ import annotations

import ast
import builtins

MIN_LINES, MAX_LINES, MAX_CHARS = 4, 70, 4500  # MIN and MAX: after the first line

_BUILTINS = set(dir(builtins)) | {"self", "__name__"}
_PLAIN_IMPORTS = set(
    "math re itertools collections functools typing random string operator heapq bisect copy "
    "datetime hashlib decimal fractions statistics numbers time json __future__ dataclasses enum "
    "abc textwrap cmath numpy".split()
)


def small_programs(text: str) -> list[str]:
    """Return a Python file's documented functions that need only plain imports, as programs."""
    try:
        tree = ast.parse(text) if text.isascii() else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return []
    imports, lines, programs = _plain_imports(tree), text.split("\n"), []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not _stands_alone(node):
            continue
        free = _free_names(node)
        if free <= imports.keys():
            head = "".join(sorted({imports[name] + "\n" for name in free}))
            source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if len(source) <= MAX_CHARS:
                programs.append((head + "\n\n" if head else "") + source + "\n")
    return programs


def _plain_imports(tree: ast.Module) -> dict[str, str]:
    """Return name to statement of what a module imports from plain modules."""
    imports = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.split(".")[0]
                if top in _PLAIN_IMPORTS:
                    alias = f" as {name.asname}" if name.asname else ""
                    imports[(name.asname or name.name).split(".")[0]] = f"import {name.name}{alias}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (node.module or "").split(".")[0] in _PLAIN_IMPORTS:
                for name in node.names:
                    alias = f" as {name.asname}" if name.asname else ""
                    statement = f"from {node.module} import {name.name}{alias}"
                    imports[name.asname or name.name] = statement
    return imports


def _stands_alone(node: ast.FunctionDef) -> bool:
    """Return whether a function has a fitting length, a docstring and no decorator."""
    size = (node.end_lineno or node.lineno) - node.lineno
    return (
        not node.decorator_list
        and MIN_LINES <= size <= MAX_LINES
        and not node.name.startswith(("test", "main", "__"))
        and ast.get_docstring(node, clean=False) is not None
    )


def _free_names(function: ast.FunctionDef) -> set[str]:
    """Return names that a function reads and does not bind anywhere in itself."""
    load, stored = set(), {function.name}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            (load if isinstance(node.ctx, ast.Load) else stored).add(node.id)
        elif isinstance(node, ast.arg):
            stored.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            stored.add(node.name)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            stored.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            stored.update((name.asname or name.name).split(".")[0] for name in node.names)
    return load - stored - _BUILTINS
