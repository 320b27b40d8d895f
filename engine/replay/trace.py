"""Traces: recorded editing, one JSON record a line, parsed strictly before any model work.

Offsets are code points and are checked against the text as it is at that record, so that a wrong
trace is named by line, value and remedy instead of measuring something else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..wire.errors import BadRequest

Edits = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """One or several edits, all in offsets before any of them, ascending."""

    line: int
    edits: Edits


@dataclass(frozen=True, slots=True)
class Cursor:
    """The cursor moved."""

    line: int
    offset: int


@dataclass(frozen=True, slots=True)
class Complete:
    """A completion was asked for; `reference` is what was really written there, if known."""

    line: int
    offset: int
    reference: str | None


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing happened for so many (simulated) milliseconds."""

    line: int
    ms: float


Record = Edit | Cursor | Complete | Idle


@dataclass(frozen=True, slots=True)
class Trace:
    """One document's text and what was done to it."""

    path: str
    text: str
    records: tuple[Record, ...]


def read_trace(path: Path) -> Trace:
    """Read and check the trace at `path`.

    Raises:
        BadRequest: the file cannot be read or a record is malformed; names line and remedy.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(
            f"{path}: {error.strerror or error}; give the path of a trace (JSON lines)"
        ) from None
    return parse_trace(data)


def parse_trace(data: bytes) -> Trace:
    """Parse JSON lines: an `open` record, then `edit`, `edits`, `cursor`, `complete`, `idle`.

    Raises:
        BadRequest: names the line, the value and the remedy.
    """
    opened: tuple[str, str] | None = None
    records: list[Record] = []
    length = 0
    for line, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        kind, body = _record(line, raw)
        if opened is None:
            if kind != "open":
                raise _bad(
                    line, f"the first record is {_shown(kind)}", "start with an 'open' record"
                )
            fields = _fields(line, kind, body, {"path": str, "text": str})
            opened, length = (fields["path"], fields["text"]), len(fields["text"])
        elif kind == "open":
            raise _bad(line, "a second 'open'", "one trace is one document: split it in two")
        else:
            record, length = _parse(line, kind, body, length)
            records.append(record)
    if opened is None:
        raise _bad(1, "the trace is empty", "start with an 'open' record")
    return Trace(*opened, tuple(records))


def map_back(offset: int, edits: Edits) -> int:
    """Return where `offset`, a place after ascending `edits`, was before them.

    A place inside inserted text maps to the start of what it replaced.
    """
    shift = 0
    for start, end, text in edits:
        if offset <= start + shift:
            break
        if offset < start + shift + len(text):
            return start
        shift += len(text) - (end - start)
    return offset - shift


def next_place(records: Sequence[Record]) -> int | None:
    """Return where the next cursor or completion of `records` lies in the text before them."""
    passed: list[Edits] = []
    for record in records:
        if isinstance(record, Edit):
            passed.append(record.edits)
        elif isinstance(record, Cursor | Complete):
            offset = record.offset
            for edits in reversed(passed):
                offset = map_back(offset, edits)
            return offset
    return None


def _record(line: int, raw: bytes) -> tuple[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise _bad(line, f"not UTF-8 at byte {error.start}", "save the trace as UTF-8") from None
    except ValueError as error:
        raise _bad(line, f"not JSON ({error})", "write one JSON object a line") from None
    except RecursionError:
        raise _bad(line, "nested too deep", "write one JSON object a line") from None
    if not isinstance(value, dict) or len(value) != 1:
        raise _bad(line, f"{_shown(value)} is not a record", "write one object with one key")
    ((kind, body),) = value.items()
    return kind, body


def _parse(line: int, kind: str, body: object, length: int) -> tuple[Record, int]:
    if kind in ("edit", "edits"):
        items = body if kind == "edits" else [body]
        if not isinstance(items, list) or not items:
            raise _bad(line, f"'edits' is {_shown(items)}", "give a list of one or more edits")
        edits = sorted((_edit(line, item, length) for item in items), key=lambda edit: edit[:2])
        for (_, end, _), (start, _, _) in zip(edits, edits[1:], strict=False):
            if start < end:
                raise _bad(line, f"edits overlap at {start}", "merge them, or use two records")
        return Edit(line, tuple(edits)), length + sum(len(t) - (e - s) for s, e, t in edits)
    if kind == "cursor":
        offset = _fields(line, kind, body, {"offset": int})["offset"]
        return Cursor(line, _offset(line, "offset", offset, length)), length
    if kind == "complete":
        fields = _fields(line, kind, body, {"offset": int}, {"reference": str})
        offset = _offset(line, "offset", fields["offset"], length)
        return Complete(line, offset, fields.get("reference")), length
    if kind == "idle":
        ms = _fields(line, kind, body, {"ms": float})["ms"]
        if not 0 <= ms <= sys.float_info.max:
            raise _bad(line, f"idle of {_shown(ms)} ms", "give a number of milliseconds from 0 up")
        return Idle(line, float(ms)), length
    raise _bad(line, f"unknown record {_shown(kind)}", "use edit, edits, cursor, complete or idle")


def _edit(line: int, body: object, length: int) -> tuple[int, int, str]:
    fields = _fields(line, "edit", body, {"start": int, "end": int, "text": str})
    start = _offset(line, "start", fields["start"], length)
    end = _offset(line, "end", fields["end"], length)
    if end < start:
        raise _bad(line, f"edit from {start} to {end}", "start must not lie after end")
    return start, end, fields["text"]


def _offset(line: int, name: str, offset: int, length: int) -> int:
    if not 0 <= offset <= length:
        raise _bad(line, f"{name} {_shown(offset)}", f"the text has {length} code points there")
    return offset


def _fields(
    line: int,
    kind: str,
    body: object,
    required: dict[str, type],
    optional: dict[str, type] | None = None,
) -> dict[str, Any]:
    known = required | (optional or {})
    if not isinstance(body, dict) or not required.keys() <= body.keys() <= known.keys():
        raise _bad(line, f"{kind!r} holds {_shown(body)}", f"give exactly {', '.join(known)}")
    for name, value in body.items():
        kinds = (int, float) if known[name] is float else (known[name],)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = {int: "a whole number", float: "a number", str: "a string"}[known[name]]
            raise _bad(line, f"{name} is {_shown(value)}", f"give {wanted}")
    return body


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _bad(line: int, what: str, remedy: str) -> BadRequest:
    return BadRequest(f"trace line {line}: {what}; {remedy}")
