"""What can be changed in JavaScript and TypeScript: names, signatures, constants and imports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tree_sitter import Node

from ..hunks import Hunk
from .change import SHORTEST_NAME, Change, Names, new_value
from .script_module import (
    FUNCTIONS,
    PATTERN,
    Module,
    arguments,
    inside,
    is_binding,
    named_functions,
    outermost,
    parameters_of,
    plain_name,
    walk,
)
from .script_signatures import signatures

_LITERALS = {"number", "string", "true", "false"}


def changes(kind: str, text: str, names: Names, language: str) -> Iterator[Change]:
    """Yield the changes of one kind that can be made to a file."""
    module = Module(text, language)
    find: dict[str, Callable[[Module, Names], Iterator[Change]]] = {
        "rename-variable": variables,
        "rename-parameter": parameters,
        "rename-function": functions,
        "signature": signatures,
        "constant": constants,
        "import": imports,
    }
    if module.is_whole:
        yield from find[kind](module, names)


def variables(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of the local variables of each function."""
    for function in outermost(module):
        found = inside(module, function)
        for name, nodes in found.items():
            declared = [n for n in nodes if _is_declared(n, "variable_declarator")]
            assigned = [n for n in nodes if _is_declared(n, "assignment_expression")]
            bound = [node for node in nodes if is_binding(node)]
            # Declared once, and before all else: no other variable of that name.
            if len(declared) == 1 and len(bound) - len(assigned) == 1 and nodes[0] == declared[0]:
                yield from module.renamed(
                    "rename-variable", names, name, nodes, definition=declared[0]
                )


def _is_declared(node: Node, kind: str) -> bool:
    parent = node.parent
    return parent is not None and parent.type == kind and is_binding(node)


def parameters(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of parameters; callers go by their order."""
    for function in outermost(module):
        found = inside(module, function)
        for parameter in parameters_of(function):
            name_node = plain_name(parameter)
            if name_node is None:
                continue
            name = module.says(name_node)
            nodes = found[name]
            assigned = [n for n in nodes if _is_declared(n, "assignment_expression")]
            bound = [node for node in nodes if is_binding(node)]
            if len(bound) - len(assigned) == 1:
                yield from module.renamed(
                    "rename-parameter", names, name, nodes, definition=name_node
                )


def functions(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of functions, and of methods that only `this` has in the file."""
    properties: dict[str, list[Node]] = {}
    for node in module.nodes:
        if node.type in ("property_identifier", "private_property_identifier"):
            properties.setdefault(module.says(node), []).append(node)
    for function, name_node in named_functions(module):
        name = module.says(name_node)
        if function.type != "method_definition":
            if module.bound[name] == 1:
                yield from module.renamed(
                    "rename-function", names, name, module.by_name[name], definition=name_node
                )
            continue
        others = [node for node in properties[name] if node != name_node]
        bare = name.lstrip("#")
        is_own = all(
            node.parent is not None
            and (owner := node.parent.child_by_field_name("object")) is not None
            and owner.type == "this"
            for node in others
        )
        if not is_own or not others or len(bare) < SHORTEST_NAME or bare == "constructor":
            continue
        if new := names.instead_of(bare):
            skip = len(name) - len(bare)
            places = [module.start(node) + skip for node in (name_node, *others)]
            hunks = [Hunk(at, at + len(bare), new) for at in places]
            yield Change(
                "rename-function", module.text, hunks, places[0], places[1:],
                f"{name} becomes {new}",
            )  # fmt: skip


def constants(module: Module, names: Names) -> Iterator[Change]:
    """Yield new values and names of constants, and new values of defaults."""
    for node in module.nodes:
        name = node.child_by_field_name("name" if node.type == "variable_declarator" else "left")
        value = node.child_by_field_name("value" if node.type != "assignment_pattern" else "right")
        if node.type in ("required_parameter", "optional_parameter"):
            name = node.child_by_field_name("pattern")
        if name is None or value is None or name.type != "identifier":
            continue
        text = module.says(name)
        if node.type == "variable_declarator":
            if module.bound[text] > 1 or value.type in FUNCTIONS | {"call_expression"}:
                continue
            if required(module, node) is not None:
                continue
            nodes = module.by_name[text]
            parent = node.parent.parent if node.parent is not None else None
            if parent is not None and parent.type in ("program", "export_statement"):
                yield from module.renamed("constant", names, text, nodes, definition=name)
        elif node.type in ("assignment_pattern", "required_parameter", "optional_parameter"):
            owner = node.parent.parent if node.parent is not None else None
            if owner is None:
                continue
            nodes = inside(module, owner).get(text, [])
        else:
            continue
        uses = [module.start(n) for n in nodes if not is_binding(n)]
        old = module.says(value)
        if value.type in _LITERALS and uses and len(text) >= SHORTEST_NAME:
            if (new := new_value(old, names)) and new != old:
                hunk = Hunk(module.start(value), module.end(value), new)
                detail = f"{text} is {new[:40]} instead of {old[:40]}"
                yield Change("constant", module.text, [hunk], module.start(name), uses, detail)


def imports(module: Module, names: Names) -> Iterator[Change]:
    """Yield new names of what is imported or required once, and new sources of it."""
    for node in module.nodes:
        if node.type == "import_statement":
            source = node.child_by_field_name("source")
        elif node.type == "variable_declarator" and (call := required(module, node)) is not None:
            source = arguments(call)[0]
        else:
            continue
        if source is None or source.type != "string":
            continue
        for name in walk(node):
            if name.type not in ("identifier", PATTERN) or not is_binding(name):
                continue
            text = module.says(name)
            nodes = module.by_name[text]
            if (
                module.bound[text] > 1
                or nodes[0] != name
                and module.start(nodes[0]) < module.start(node)
            ):
                continue
            for change in module.renamed("import", names, text, nodes, definition=name):
                yield change
                path = module.says(source)[1:-1]
                stem = path.rsplit("/", 1)[-1].split(".")[0]
                new = names.instead_of(stem.replace("-", "_") or "value")
                if stem and new:
                    at = module.start(source) + 1 + path.rindex(stem)
                    hunk = Hunk(at, at + len(stem), new)
                    detail = f"{text} is imported from {new}"
                    yield change._replace(hunks=[hunk], detail=detail)


def required(module: Module, declarator: Node) -> Node | None:
    """Return the `require` call that a variable is declared with."""
    call = declarator.child_by_field_name("value")
    while call is not None and call.type == "member_expression":
        call = call.child_by_field_name("object")
    if call is None or call.type != "call_expression" or not arguments(call):
        return None
    called = call.child_by_field_name("function")
    return call if called is not None and module.says(called) == "require" else None
