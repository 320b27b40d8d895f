"""Names, signatures, constants and imports of a Python module, and what changes with them."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

from .dependent import SHORTEST_NAME, Change, Names, backwards, new_value, renaming
from .hunks import Hunk

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


def outermost(module: Module) -> Iterator[Function]:
    """Yield the functions of the module and of its classes, none that lies in another."""
    waiting: list[ast.AST] = list(module.tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            waiting.extend(ast.iter_child_nodes(node))


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


def signatures(module: Module, names: Names) -> Iterator[Change]:
    """Yield parameters that are added as the file has them, taken away, or renamed for callers."""
    for function in outermost(module):
        if module.defined[function.name] > 1:
            continue
        calls = calls_of(module, function)
        inside = {id(node) for node in ast.walk(function)}
        is_method = any(arg.arg in ("self", "cls") for arg in every_parameter(function)[:1])
        outside = [
            call
            for call in calls
            if id(call) not in inside
            and (function.name == "__init__" or is_own(call) or not is_method)
        ]
        if outside:
            yield from added(module, function, outside)
            yield from taken_away(module, function, outside, names)


def added(module: Module, function: Function, calls: list[ast.Call]) -> Iterator[Change]:
    """Yield the last parameter's arrival, with the argument in the calls that end with it."""
    args = function.args
    if args.vararg or args.kwarg or len(args.args) < 2:
        return
    last = (args.kwonlyargs or args.args)[-1]
    before = every_parameter(function)[-2]
    if args.kwonlyargs and len(args.kwonlyargs) == 1:
        return  # its star would have to go too
    default = (args.kw_defaults if args.kwonlyargs else args.defaults)[-1:]
    end = module.end(default[0]) if default and default[0] else module.end(last)
    previous = _end_of_parameter(module, function, before)
    gone = [Hunk(previous, end, "")]
    uses = []
    is_bound = not any(
        isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list
    )
    own = args.args[0].arg in ("self", "cls") and is_bound
    number = None if args.kwonlyargs else len(args.args) - 1 - own
    for call in calls:
        given = [keyword for keyword in call.keywords if keyword.arg == last.arg]
        ordered: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        if len(ordered) < 2 or any(isinstance(a, ast.Starred) for a in call.args):
            continue
        passed = given[0] if given else None
        if passed is None and number is not None and len(call.args) == number + 1:
            passed = call.args[number]
        if passed is None or passed is not ordered[-1]:
            continue
        gone.append(Hunk(module.end(ordered[-2]), module.end(passed), ""))
        uses.append(module.start(call))
    if uses:
        detail = f"{function.name} gains {last.arg}"
        definition = module.name_of(function)
        yield backwards("signature", module.text, gone, definition, uses, detail)


def _end_of_parameter(module: Module, function: Function, node: ast.arg) -> int:
    args = function.args
    pairs = [
        *zip(reversed([*args.posonlyargs, *args.args]), reversed(args.defaults), strict=False),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    default = next((value for arg, value in pairs if arg is node and value is not None), None)
    return module.end(default) if default else module.end(node)


def taken_away(
    module: Module, function: Function, calls: list[ast.Call], names: Names
) -> Iterator[Change]:
    """Yield the removal of a last parameter that the file never had, from the calls too."""
    args = function.args
    if args.vararg or args.kwarg or args.kwonlyargs or not args.args:
        return
    gone = names.instead_of(args.args[-1].arg if args.args[-1].arg != "self" else "value")
    if gone is None:
        return
    at = _end_of_parameter(module, function, args.args[-1])
    annotated = ": bool = False" if function.returns else "=False"
    extra = [Hunk(at, at, f", {gone}{annotated}")]
    uses = []
    for call in calls:
        if call.args and not call.keywords and not isinstance(call.args[-1], ast.Starred):
            end = module.end(call.args[-1])
            if module.text[end : end + 1] == ")" and not isinstance(
                call.args[-1], ast.GeneratorExp
            ):
                extra.append(Hunk(end, end, f", {gone}=True"))
                uses.append(module.start(call))
    if uses:
        detail, definition = f"{function.name} loses {gone}", module.name_of(function)
        yield backwards("signature", module.text, extra, definition, uses, detail)


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
