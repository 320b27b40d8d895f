"""`keyturn stats`: how often suggestions are accepted and stay, from what `events` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .events import PERSISTENCE_S, older

GROUPS = ("language", "trigger", "kind")
SWITCH_ON = (
    'no suggestion is noted yet; the setting "event_log": true switches the log on. It stays on '
    "this machine and holds no text"
)
_Line = dict[str, Any]


def figures(path: Path) -> dict[str, Any]:
    """Return what the log at `path` says, as plain data.

    Returns:
        `num_suggestions`, `keys_saved`, then rates from 0 to 1 (None where nothing was counted):
        under "all", and under each of "language", "trigger" and "kind" by their values. A
        suggestion counts that its client showed (or did not say whether), and that no better one
        took the place of. `acceptance`: of these, accepted whole or in part; `first_word_wrong`:
        the user typed something else; `persistence_30_s`, `persistence_300_s`: mean share of an
        accepted text's characters that was still there. Lines that are none are left out.
    """
    lines = [line for part in (older(path), path) for line in _lines(part)]
    found: dict[str, Any] = {
        "log": str(path),
        "num_suggestions": sum(map(_counts, lines)),
        "keys_saved": sum(_number(line, "keys_saved") for line in lines),
        "all": _rates(lines),
    }
    for group in GROUPS:
        values = sorted({str(line.get(group)) for line in lines})
        found[group] = {
            value: _rates([line for line in lines if str(line.get(group)) == value])
            for value in values
        }
    return found


def report(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    if not found["num_suggestions"]:
        return f"Nothing to show: {SWITCH_ON}.\nlog: {found['log']}\n"
    names = [*found["all"]]
    rows = [("", *(name.replace("_", " ") for name in names)), _row("all", found["all"])]
    for group in GROUPS:
        rows += [_row(f"{group} {value}", rates) for value, rates in found[group].items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([*text, "", f"keys saved: {found['keys_saved']}", f"log: {found['log']}", ""])


def _lines(path: Path) -> Iterator[_Line]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            one = json.loads(line)
        except ValueError:  # a process was killed while it wrote
            continue
        if isinstance(one, dict) and one.get("event") in ("suggestion", "persistence"):
            yield one


def _counts(line: _Line) -> bool:
    is_suggestion = line["event"] == "suggestion"
    return is_suggestion and line.get("shown") is not False and line.get("outcome") != "replaced"


def _rates(lines: Sequence[_Line]) -> dict[str, float | int | None]:
    counted = [line for line in lines if _counts(line)]
    accepted = [line.get("outcome") in ("accepted", "partly") for line in counted]
    rates: dict[str, float | int | None] = {
        "suggestions": len(counted),
        "acceptance": _mean(accepted),
        "first_word_wrong": _mean([line.get("first_word_wrong") is True for line in counted]),
    }
    for after_s in PERSISTENCE_S:
        shares = [_number(line, "share") for line in lines if line.get("after_s") == after_s]
        rates[f"persistence_{after_s}_s"] = _mean(shares)
    return rates


def _number(line: _Line, name: str) -> float:
    value = line.get(name)
    return value if isinstance(value, int | float) else 0


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _row(name: str, rates: dict[str, Any]) -> tuple[str, ...]:
    return (name, *map(_shown, rates.values()))


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"
