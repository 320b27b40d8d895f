"""What a person does, kind by kind, each from the same state."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
from bench_edit_latency import LINE, SOURCE, line_start
from traces.cursor import lines_away

from keyturn.engine.loaded_model import Model

TYPED = "result ="
KEY, ENTER, ABOVE, UNDO, ACCEPT = "a key", "Enter", "edit above", "undo of it", "accepted"
JUMPS = {"jump 10 down": 10, "jump 25 up": -25}

Change = tuple[int, int, str]


class Step(NamedTuple):
    """One thing that a person does.

    Attributes:
        kind: "" for one that only leads back to where the next kind begins.
        change: of the text; None for none.
        cursor: where the completion is asked for, after it.
    """

    kind: str
    change: Change | None
    cursor: int


def place(model: Model, context: int, distance: int) -> tuple[str, int, int]:
    """Return a text that fills the window, the cursor in it, and where the edit above goes.

    The cursor is on a new line with the indentation of the one before it, at two thirds.
    """
    with SOURCE.open(encoding="utf-8") as file:
        text = json.loads(file.readline())["open"]["text"]
    starts = model.tokenizer.encode(text).starts
    # What is typed, and an edge of the window, have room; neither side ever moves the window.
    most_chars = int(0.9 * context * model.chars_per_token)
    num_tokens = min(int(0.9 * context), int(np.searchsorted(starts, most_chars)), len(starts) - 1)
    at = num_tokens * 2 // 3
    text = text[: line_start(text, int(starts[num_tokens]))]
    above = line_start(text, int(starts[max(0, at - distance)]))
    end = line_start(text, int(starts[at])) - 1
    last = text[line_start(text, end) : end]
    indent = last[: len(last) - len(last.lstrip())] or "    "
    return f"{text[:end]}\n{indent}{text[end:]}", end + 1 + len(indent), above


def steps(text: str, cursor: int, above: int) -> list[Step]:
    """Return a round: every kind of step once, or as often as there are keys, and back again."""
    indent = text[line_start(text, cursor) : cursor]
    # A key that nobody measures: processes that were just started have done one before.
    found = [
        Step("", (cursor, cursor, "x"), cursor + 1),
        Step("", (cursor, cursor + 1, ""), cursor),
    ]
    found += [
        Step(KEY, (cursor + at, cursor + at, key), cursor + at + 1) for at, key in enumerate(TYPED)
    ]
    end = cursor + len(TYPED)
    found.append(Step(ENTER, (end, end, "\n" + indent), end + 1 + len(indent)))
    found.append(Step("", (cursor, end + 1 + len(indent), ""), cursor))
    found.append(Step(ACCEPT, None, cursor))
    found.append(Step(ABOVE, (above, above, LINE), cursor + len(LINE)))
    found.append(Step(UNDO, (above, above + len(LINE), ""), cursor))
    for kind, lines in JUMPS.items():
        if (there := lines_away(text, cursor, lines)) is None:
            raise SystemExit(f"{kind}: the text has no such line; raise --context")
        found += [Step(kind, None, there), Step(f"return, {abs(lines)} lines", None, cursor)]
    return found
