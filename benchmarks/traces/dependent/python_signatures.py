"""Parameters of Python functions that come and go, in the definition and in its calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..hunks import Hunk
from .change import Change, Names, backwards
from .python_module import Function, Module, calls_of, every_parameter, is_own, outermost


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
