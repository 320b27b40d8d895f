"""Parameters of JavaScript and TypeScript that come and go, in the definition and in its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tree_sitter import Node

from ..hunks import Hunk
from .change import Change, Names, backwards
from .script_module import Module, arguments, named_functions, parameters_of, plain_name


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
