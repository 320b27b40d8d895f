"""A parsed JavaScript or TypeScript file, and which names are bound in it how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tree_sitter import Node

from keyturn.engine.syntax.languages import parser_of

from ..blocks import GRAMMARS, code_points
from ..hunks import Hunk
from .change import SHORTEST_NAME, Change, Names

FUNCTIONS = {
    "function_declaration", "generator_function_declaration", "method_definition",
    "function_expression", "generator_function", "arrow_function",
}  # fmt: skip
SHORTHAND = "shorthand_property_identifier"
PATTERN = "shorthand_property_identifier_pattern"
_BINDING = {
    "function_declaration", "generator_function_declaration", "function_expression",
    "class_declaration", "abstract_class_declaration", "class", "enum_declaration",
    "internal_module",
}  # fmt: skip


class Module:
    """A parsed file: its nodes, and which names are bound how often."""

    def __init__(self, text: str, language: str) -> None:
        """Parse; a file with errors has `is_whole` false."""
        self.text = text
        source = text.encode()
        self._places = code_points(source)
        self.root = parser_of(GRAMMARS[language]).parse(source).root_node
        self.is_whole = not self.root.has_error
        self.nodes = list(walk(self.root))
        self.by_name: dict[str, list[Node]] = {}
        self.bound: Counter[str] = Counter()
        for node in self.nodes:
            if node.type in ("identifier", "type_identifier", SHORTHAND, PATTERN):
                self.by_name.setdefault(self.says(node), []).append(node)
                self.bound[self.says(node)] += is_binding(node)

    def start(self, node: Node) -> int:
        """Return the code point where a node begins."""
        return self._places[node.start_byte]

    def end(self, node: Node) -> int:
        """Return the code point where a node ends."""
        return self._places[node.end_byte]

    def says(self, node: Node) -> str:
        """Return the text of a node."""
        return self.text[self.start(node) : self.end(node)]

    def renamed(
        self, kind: str, names: Names, name: str, nodes: list[Node], *, definition: Node
    ) -> Iterator[Change]:
        """Yield the renaming of a name at all its nodes."""
        uses = [self.start(node) for node in nodes if not is_binding(node)]
        if len(name) < SHORTEST_NAME or not uses or (new := names.instead_of(name)) is None:
            return
        hunks = [self._hunk(node, name, new) for node in nodes]
        detail = f"{name} becomes {new}"
        yield Change(kind, self.text, hunks, self.start(definition), uses, detail)

    def _hunk(self, node: Node, name: str, new: str) -> Hunk:
        parent = node.parent
        text = new
        if node.type in (SHORTHAND, PATTERN):
            text = f"{name}: {new}"
        elif parent is not None and len(parent.named_children) == 1:
            if parent.type == "import_specifier":
                text = f"{name} as {new}"
            elif parent.type == "export_specifier":
                text = f"{new} as {name}"
        return Hunk(self.start(node), self.end(node), text)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all named ones below, in order of place."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.named_children))


def is_binding(node: Node) -> bool:
    """Whether an identifier is bound where it stands: declared, imported or a parameter."""
    child, parent = node, node.parent
    if node.type == PATTERN:
        return True
    while parent is not None and parent.type in (
        "assignment_pattern", "object_assignment_pattern", "rest_pattern", "array_pattern",
        "object_pattern", "pair_pattern",
    ):  # fmt: skip
        if (
            parent.type.endswith("assignment_pattern")
            and parent.child_by_field_name("left") != child
        ):
            return False
        child, parent = parent, parent.parent
    if parent is None:
        return False
    if parent.type in ("formal_parameters", "import_clause", "namespace_import", "catch_clause"):
        return True
    field = {
        "variable_declarator": "name", "required_parameter": "pattern",
        "optional_parameter": "pattern", "arrow_function": "parameter",
        "for_in_statement": "left", "assignment_expression": "left",
    }.get(parent.type)  # fmt: skip
    if field or parent.type in _BINDING:
        return parent.child_by_field_name(field or "name") == child
    return parent.type == "import_specifier" and parent.named_children[-1] == child


def outermost(module: Module) -> Iterator[Node]:
    """Yield the functions that lie in no other."""
    waiting = [module.root]
    while waiting:
        node = waiting.pop()
        if node.type in FUNCTIONS:
            yield node
        else:
            waiting.extend(reversed(node.named_children))


def inside(module: Module, function: Node) -> dict[str, list[Node]]:
    """Return the identifiers in a function by name."""
    found: dict[str, list[Node]] = {}
    for node in walk(function):
        if node.type in ("identifier", SHORTHAND, PATTERN):
            found.setdefault(module.says(node), []).append(node)
    return found


def parameters_of(function: Node) -> list[Node]:
    """Return the nodes of a function's parameters."""
    if (single := function.child_by_field_name("parameter")) is not None:
        return [single]
    all_of_them = function.child_by_field_name("parameters")
    children = all_of_them.named_children if all_of_them is not None else []
    return [child for child in children if child.type != "comment"]


def plain_name(parameter: Node) -> Node | None:
    """Return the name of a parameter that is no pattern and no property."""
    node: Node | None = parameter
    if parameter.type in ("required_parameter", "optional_parameter"):
        if any(child.type in ("accessibility_modifier", "override_modifier", "readonly")
               for child in parameter.children):  # fmt: skip
            return None
        node = parameter.child_by_field_name("pattern")
    elif parameter.type == "assignment_pattern":
        node = parameter.child_by_field_name("left")
    return node if node is not None and node.type == "identifier" else None


def named_functions(module: Module) -> Iterator[tuple[Node, Node]]:
    """Yield the functions at the top of a file, and methods, with the nodes of their names."""
    for function in outermost(module):
        parent = function.parent
        name = function.child_by_field_name("name")
        if function.type in ("arrow_function", "function_expression") and parent is not None:
            name = parent.child_by_field_name("name")
            if parent.type != "variable_declarator":
                continue
        if name is not None and name.type in (
            "identifier", "property_identifier", "private_property_identifier"
        ):  # fmt: skip
            yield function, name


def arguments(call: Node) -> list[Node]:
    """Return the arguments of a call."""
    node = call.child_by_field_name("arguments")
    if node is None or node.type != "arguments":
        return []
    return [child for child in node.named_children if child.type != "comment"]
