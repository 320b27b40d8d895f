"""Names, signatures, constants and imports of JavaScript and TypeScript, by their grammars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from tree_sitter import Node

from keyturn.engine.syntax.languages import parser_of

from .blocks import GRAMMARS, code_points
from .dependent import SHORTEST_NAME, Change, Names, backwards, new_value
from .hunks import Hunk

_FUNCTIONS = {
    "function_declaration", "generator_function_declaration", "method_definition",
    "function_expression", "generator_function", "arrow_function",
}  # fmt: skip
_LITERALS = {"number", "string", "true", "false"}
_SHORTHAND = "shorthand_property_identifier"
_PATTERN = "shorthand_property_identifier_pattern"
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
            if node.type in ("identifier", "type_identifier", _SHORTHAND, _PATTERN):
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
        if node.type in (_SHORTHAND, _PATTERN):
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
    if node.type == _PATTERN:
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


def outermost(module: Module) -> Iterator[Node]:
    """Yield the functions that lie in no other."""
    waiting = [module.root]
    while waiting:
        node = waiting.pop()
        if node.type in _FUNCTIONS:
            yield node
        else:
            waiting.extend(reversed(node.named_children))


def inside(module: Module, function: Node) -> dict[str, list[Node]]:
    """Return the identifiers in a function by name."""
    found: dict[str, list[Node]] = {}
    for node in walk(function):
        if node.type in ("identifier", _SHORTHAND, _PATTERN):
            found.setdefault(module.says(node), []).append(node)
    return found


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


def signatures(module: Module, names: Names) -> Iterator[Change]:
    """Yield parameters that are added as the file has them, or taken away again."""
    calls: dict[str, list[Node]] = {}
    for node in module.nodes:
        if node.type == "call_expression" and (called := node.child_by_field_name("function")):
            name = called.child_by_field_name("property") or called
            calls.setdefault(module.says(name), []).append(node)
    found = list(named_functions(module))
    counts = Counter(module.says(name) for _, name in found)
    for function, name_node in found:
        name = module.says(name_node)
        outside = [
            call for call in calls.get(name, [])
            if not function.start_byte <= call.start_byte < function.end_byte
        ]  # fmt: skip
        if counts[name] == 1 and outside and parameters_of(function):
            yield from _added(module, function, name_node, outside)
            yield from _taken_away(module, function, name_node, outside, names)


def arguments(call: Node) -> list[Node]:
    """Return the arguments of a call."""
    node = call.child_by_field_name("arguments")
    if node is None or node.type != "arguments":
        return []
    return [child for child in node.named_children if child.type != "comment"]


def _added(module: Module, function: Node, name: Node, calls: list[Node]) -> Iterator[Change]:
    given = parameters_of(function)
    if len(given) < 2:
        return
    gone, uses = [Hunk(module.end(given[-2]), module.end(given[-1]), "")], []
    for call in calls:
        passed = arguments(call)
        if len(passed) == len(given) and all(p.type != "spread_element" for p in passed):
            gone.append(Hunk(module.end(passed[-2]), module.end(passed[-1]), ""))
            uses.append(module.start(call))
    if uses and not _overlap(gone):
        detail = f"{module.says(name)} gains {module.says(given[-1])[:40]}"
        yield backwards("signature", module.text, gone, module.start(name), uses, detail)


def _taken_away(
    module: Module, function: Node, name: Node, calls: list[Node], names: Names
) -> Iterator[Change]:
    given = parameters_of(function)
    word = plain_name(given[-1])
    if word is None or (gone := names.instead_of(module.says(word))) is None:
        return
    if function.child_by_field_name("parameter") is not None:
        return  # without parentheses
    end = module.end(given[-1])
    typed = ": boolean" if given[-1].type == "required_parameter" else ""
    extra, uses = [Hunk(end, end, f", {gone}{typed}")], []
    for call in calls:
        passed = arguments(call)
        if len(passed) == len(given) and passed[-1].type != "spread_element":
            end = module.end(passed[-1])
            extra.append(Hunk(end, end, ", true"))
            uses.append(module.start(call))
    if uses and not _overlap(extra):
        detail = f"{module.says(name)} loses {gone}"
        yield backwards("signature", module.text, extra, module.start(name), uses, detail)


def _overlap(hunks: list[Hunk]) -> bool:
    """Whether a call lies in an argument of another, so that their changes are one."""
    ordered = sorted(hunks, key=lambda hunk: (hunk.start, hunk.end))
    pairs = zip(ordered, ordered[1:], strict=False)
    return any(a.end > b.start or a.start == b.start for a, b in pairs)


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
            if module.bound[text] > 1 or value.type in _FUNCTIONS | {"call_expression"}:
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
            if name.type not in ("identifier", _PATTERN) or not is_binding(name):
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
