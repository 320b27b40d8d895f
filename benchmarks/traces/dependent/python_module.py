"""A parsed Python module whose nodes can be found in its text."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
_HEAD = re.compile(r"(?:async\s+)?(?:def|class)\s+")


class Module:
    """A parsed module whose nodes can be found in its text."""

    def __init__(self, text: str) -> None:
        """Parse; raises SyntaxError where this Python cannot read it."""
        self.text = text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tree = ast.parse(text)
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self.nodes = list(ast.walk(self.tree))
        self.functions = [node for node in self.nodes if isinstance(node, Function)]
        self.defined = Counter(function.name for function in self.functions)
        self.defined.update(node.name for node in self.nodes if isinstance(node, ast.ClassDef))

    def offset(self, line: int, column: int) -> int:
        """Return the code point of a place that `ast` gives as line and byte."""
        text = self._lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode())
        return self._starts[line - 1] + column

    def start(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias) -> int:
        """Return where a node begins."""
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias) -> int:
        """Return where a node ends."""
        return self.offset(node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)

    def name_of(self, node: Function | ast.ClassDef) -> int:
        """Return where the name of a definition begins."""
        match = _HEAD.match(self.text, self.start(node))
        return match.end() if match else self.start(node)

    def attribute(self, node: ast.Attribute) -> int:
        """Return where the name of an attribute begins."""
        return self.end(node) - len(node.attr)

    def says(self, places: list[int], name: str) -> bool:
        """Whether the name stands at all places; inside of f-strings an older `ast` errs."""
        return all(re.compile(rf"{re.escape(name)}\b").match(self.text, at) for at in places)


def outermost(module: Module) -> Iterator[Function]:
    """Yield the functions of the module and of its classes, none that lies in another."""
    waiting: list[ast.AST] = list(module.tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            waiting.extend(ast.iter_child_nodes(node))


def every_parameter(function: Function) -> list[ast.arg]:
    """Return the parameters in order, the starred ones last."""
    args = function.args
    starred = [arg for arg in (args.vararg, args.kwarg) if arg]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *starred]


def called(node: ast.Call) -> str | None:
    """Return the name by which something is called."""
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else None


def is_own(node: ast.Call) -> bool:
    """Whether what is called is a method of `self` or `cls`."""
    return isinstance(node.func, ast.Attribute) and is_self(node.func.value)


def is_self(node: ast.expr) -> bool:
    """Whether a node is `self` or `cls`."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def calls_of(module: Module, function: Function) -> list[ast.Call]:
    """Return the calls that go by the function's name, or by its class's for `__init__`."""
    name = function.name
    if name == "__init__":
        owners = (n for n in module.nodes if isinstance(n, ast.ClassDef) and function in n.body)
        name = next((owner.name for owner in owners), name)
    return [n for n in module.nodes if isinstance(n, ast.Call) and called(n) == name]


def keywords_of(module: Module, function: Function, name: str) -> list[int]:
    """Return where calls of the function name this parameter."""
    return [
        module.start(keyword)
        for call in calls_of(module, function)
        for keyword in call.keywords
        if keyword.arg == name
    ]
