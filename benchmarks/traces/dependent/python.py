"""What can be changed in a Python module: names, signatures, constants and imports."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator

from ..hunks import Hunk
from .change import SHORTEST_NAME, Change, Names, new_value, renaming
from .python_module import Function, Module, every_parameter, is_self, keywords_of, outermost
from .python_signatures import signatures


def changes(kind: str, text: str, names: Names, language: str) -> Iterator[Change]:
    """Yield the changes of one kind that can be made to a module."""
    del language
    try:
        module = Module(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    find: dict[str, Callable[[Module, Names], Iterator[Change]]] = {
        "rename-variable": variables,
        "rename-parameter": parameters,
        "rename-function": functions,
        "signature": signatures,
        "constant": constants,
        "import": imports,
    }
    yield from find[kind](module, names)


def renamed(
    module: Module, kind: str, names: Names, name: str, places: list[int], uses: list[int]
) -> Iterator[Change]:
    """Yield the renaming of a name whose first place defines it, if all can be found."""
    if len(name) >= SHORTEST_NAME and uses and module.says(places, name):
        if new := names.instead_of(name):
            yield renaming(kind, module.text, places, name, new, min(places), uses)


def bound_otherwise(function: Function) -> set[str]:
    """Return the names in a function that something else than an assignment binds."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            found.update(node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, Function | ast.ClassDef) and node is not function:
            found.add(node.name)
    return found


def variables(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of the local variables of each function."""
    for function in outermost(module):
        inside = list(ast.walk(function))
        if any(isinstance(node, ast.ClassDef) for node in inside):
            continue
        found = [node for node in inside if isinstance(node, ast.Name)]
        kept = bound_otherwise(function) | {n.arg for n in inside if isinstance(n, ast.arg)}
        for name in dict.fromkeys(n.id for n in found if isinstance(n.ctx, ast.Store)):
            places = [module.start(n) for n in found if n.id == name]
            uses = [module.start(n) for n in found if n.id == name and isinstance(n.ctx, ast.Load)]
            if name not in kept and name != "_":
                yield from renamed(module, "rename-variable", names, name, places, uses)


def parameters(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of parameters, and of the keywords in calls of their functions."""
    for function in outermost(module):
        inside = list(ast.walk(function))
        counts = Counter(node.arg for node in inside if isinstance(node, ast.arg))
        found = [node for node in inside if isinstance(node, ast.Name)]
        kept = bound_otherwise(function)
        for node in every_parameter(function):
            name = node.arg
            if name in ("self", "cls") or counts[name] > 1 or name in kept:
                continue
            keywords = keywords_of(module, function, name)
            if keywords and module.defined[function.name] > 1:
                continue
            places = [module.start(node), *(module.start(n) for n in found if n.id == name)]
            uses = [module.start(n) for n in found if n.id == name and isinstance(n.ctx, ast.Load)]
            yield from renamed(
                module, "rename-parameter", names, name, places + keywords, uses + keywords
            )


def functions(module: Module, names: Names) -> Iterator[Change]:
    """Yield renamings of functions, and of methods that only `self` and `cls` have here."""
    by_name: dict[str, list[ast.Name]] = {}
    by_attribute: dict[str, list[ast.Attribute]] = {}
    bound = {node.arg for node in module.nodes if isinstance(node, ast.arg)}
    for node in module.nodes:
        if isinstance(node, ast.Name):
            by_name.setdefault(node.id, []).append(node)
        elif isinstance(node, ast.Attribute):
            by_attribute.setdefault(node.attr, []).append(node)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.split(".")[0])
    methods = {
        node
        for owner in module.nodes
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, Function)
    }
    for function in outermost(module):
        name = function.name
        if module.defined[name] > 1 or name.startswith("__") or name in bound:
            continue
        plain, dotted = by_name.get(name, []), by_attribute.get(name, [])
        if function in methods:
            known = all(is_self(node.value) for node in dotted)
            uses = [module.attribute(node) for node in dotted]
            if plain or not known:
                continue
        else:
            uses = [module.start(node) for node in plain]
            if any(not isinstance(node.ctx, ast.Load) for node in plain):
                continue
        places = [module.name_of(function), *uses]
        yield from renamed(module, "rename-function", names, name, places, uses)


def constants(module: Module, names: Names) -> Iterator[Change]:
    """Yield new values and names of constants, and new values of defaults."""
    stored = Counter(
        n.id for n in module.nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
    bound = {node.arg for node in module.nodes if isinstance(node, ast.arg)}
    for node in module.tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            continue
        name = target.id
        if stored[name] > 1 or name in bound or module.defined[name] or name.startswith("__"):
            continue
        places = [module.start(n) for n in module.nodes if isinstance(n, ast.Name) and n.id == name]
        uses = [at for at in places if at > module.start(target)]
        yield from renamed(module, "constant", names, name, places, uses)
        yield from _revalued(module, node.value, name, module.start(target), uses, names)
    for function in outermost(module):
        args = function.args
        pairs = [
            *zip(reversed([*args.posonlyargs, *args.args]), reversed(args.defaults), strict=False),
            *zip(args.kwonlyargs, args.kw_defaults, strict=True),
        ]
        for arg, value in pairs:
            uses = [
                module.start(node)
                for node in ast.walk(function)
                if isinstance(node, ast.Name) and node.id == arg.arg
            ]
            yield from _revalued(module, value, arg.arg, module.start(arg), uses, names)


def _revalued(
    module: Module, value: ast.expr | None, name: str, at: int, uses: list[int], names: Names
) -> Iterator[Change]:
    if not isinstance(value, ast.Constant) or len(name) < SHORTEST_NAME or not uses:
        return
    old = module.text[module.start(value) : module.end(value)]
    new = new_value(old, names)
    if new and new != old and module.says(uses, name):
        hunk = Hunk(module.start(value), module.end(value), new)
        detail = f"{name} is {new[:40]} instead of {old[:40]}"
        yield Change("constant", module.text, [hunk], at, uses, detail)


def imports(module: Module, names: Names) -> Iterator[Change]:
    """Yield new aliases of what is imported once, and new sources of it."""
    bound = {node.arg for node in module.nodes if isinstance(node, ast.arg)}
    bound |= {
        n.id for n in module.nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)
    }
    found = [
        (node, alias)
        for node in module.tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.name != "*"
    ]
    known = Counter(alias.asname or alias.name for _, alias in found)
    for node, alias in found:
        name = alias.asname or alias.name
        if "." in name or known[name] > 1 or name in bound or module.defined[name]:
            continue
        uses = [module.start(n) for n in module.nodes if isinstance(n, ast.Name) and n.id == name]
        if not uses or not module.says(uses, name) or len(name) < 2:
            continue
        at = module.start(alias)
        if getattr(node, "module", None) == "__future__" or (new := names.instead_of(name)) is None:
            continue
        hunks = [Hunk(use, use + len(name), new) for use in uses]
        end = module.end(alias)
        if alias.asname:
            hunks.append(Hunk(end - len(name), end, new))
        else:
            hunks.append(Hunk(end, end, f" as {new}"))
        yield Change("import", module.text, hunks, at, uses, f"{name} is imported as {new}")
        source = getattr(node, "module", None)
        match = re.compile(r"from\s+\.*([\w.]+)").match(module.text, module.start(node))
        if source and match and (new := names.instead_of(source.split(".")[-1])):
            first = match.end(1) - len(source.split(".")[-1])
            hunk = Hunk(first, match.end(1), new)
            detail = f"{name} is imported from {new}"
            yield Change("import", module.text, [hunk], module.start(node), uses, detail)
