"""How far a completion is indented, against the line that it is written on and the block around."""

from __future__ import annotations

import re

from .lines import Sides

# Lines above the cursor that show how deep one level is.
_NUM_LINES, _USUAL = 60, 4
_TAB = 4
# A line that is indented less and still belongs to what is above it.
_GOES_ON = re.compile(
    r"[)\]}]|</|(?:elif|else|except|finally|catch|case|default|rescue|ensure|end|when|while)\b"
)


def drop_excess_indent(kept: str, around: Sides) -> str:
    """Drop white space at the start that the line has already, or that no block asks for.

    A model that was cut behind the indentation at times writes it once more.
    """
    if around.before.strip() or not kept[:1].isspace() or kept.startswith("\n"):
        return kept
    first = kept.split("\n", 1)[0]
    extra = _width(first)
    above = [line for line in around.prefix.split("\n")[-_NUM_LINES:-1] if line.strip()]
    last = above[-1] if above else ""
    most = _width(last) + (
        _unit([*above, around.before + "x"]) if last.rstrip()[-1:] in tuple(":{([=,\\") else 0
    )
    here = _width(around.before + "x")
    if here + extra <= most or not here:
        return kept
    lines = kept.split("\n")
    are_all = all(_width(line) >= here + extra for line in lines[1:] if line.strip())
    rest = [_less(line, extra) if are_all else line for line in lines[1:]]
    return "\n".join([first.lstrip(), *rest])


def drop_beyond_block(kept: str, around: Sides) -> str:
    """Drop what comes after the block that the cursor is in, where a line is indented less."""
    before = around.before
    base = _width(before + "x") if not before.strip() else _width(before)
    if not base or around.rest.strip():
        return kept
    lines = kept.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if not line.strip() or _width(line) >= base:
            continue
        if not _GOES_ON.match(line.lstrip()):
            return "\n".join(lines[:number]).rstrip("\n")
        base = _width(line)  # closed by the completion itself: the outer block goes on
    return kept


def _unit(lines: list[str]) -> int:
    """Return how many columns one level is indented by."""
    return min((width for line in lines if (width := _width(line))), default=_USUAL)


def _less(line: str, columns: int) -> str:
    expanded = line.expandtabs(_TAB)
    return line if "\t" in line[: _width(line)] else expanded[min(columns, _width(line)) :]


def _width(line: str) -> int:
    expanded = line.expandtabs(_TAB)
    return len(expanded) - len(expanded.lstrip())
