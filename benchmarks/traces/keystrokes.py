"""Typing: a function grows from a few lines to what it is, in steps that all parse.

After LintSeq (Piterbarg et al., 2024): lines are taken out backwards, chunk by chunk, each time so
many that no error is left, with the parser as the linter; played forwards that is how it might have
been written.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from keyturn.engine.syntax import python
from keyturn.engine.syntax.languages import parser_of

from .blocks import GRAMMARS, functions
from .cases import Case
from .sources import Source

KINDS = ("typing",)
_LINES = (8, 60)  # of a function
_LONGEST_CHUNK = 8  # lines that are taken out at once, at most
_FEWEST_STEPS, _MOST_STEPS = 4, 12
_TRIES = 40
_SHORTEST_REFERENCE = 30
_MOST_PER_FILE = 4


def cases(source: Source, rng: random.Random) -> Iterator[Case]:
    """Yield the writing of some of a file's functions."""
    text = source.text
    found = list(functions(text, source.language))
    rng.shuffle(found)
    count = 0
    for start, end in found:
        if not _LINES[0] <= text.count("\n", start, end) <= _LINES[1]:
            continue
        lines = text[start:end].splitlines(keepends=True)
        kept, steps = taken_out(lines, text[:start], source.language, rng)
        if len(steps) < _FEWEST_STEPS:
            continue
        if case := _written(source, start, end, lines, kept, steps):
            count += 1
            yield case
        if count == _MOST_PER_FILE:
            return


def taken_out(
    lines: list[str], before: str, language: str, rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """Take out chunks of lines so that what remains parses after each.

    Args:
        lines: a function's lines, with their ends.
        before: the text above them.
        language: "py", "js" or "ts".
        rng: chooses the chunks.

    Returns:
        The numbers of the lines that remain, and of those that were taken out, chunk by chunk.
    """
    kept, steps = list(range(len(lines))), []
    for _ in range(_TRIES):
        if len(steps) == _MOST_STEPS or len(kept) < 3:
            break
        first = rng.randrange(1, len(kept))  # the header stays
        for last in range(first + 1, min(len(kept), first + _LONGEST_CHUNK) + 1):
            rest = kept[:first] + kept[last:]
            if parses("".join(lines[number] for number in rest), before, language):
                chunk = kept[first:last]
                if any(lines[number].strip() for number in chunk):
                    steps.append(chunk)
                    kept = rest
                break
    return kept, steps


def parses(part: str, before: str, language: str) -> bool:
    """Whether a function without some of its lines still has no error."""
    if language == "py":
        return python.parses(part, python.enclosing(part, before))
    parser = parser_of(GRAMMARS[language])
    return not all(
        parser.parse(wrapped.encode()).root_node.has_error
        for wrapped in (part, f"class A {{\n{part}\n}}", f"a = {{\n{part}\n}}")
    )


def _written(
    source: Source,
    start: int,
    end: int,
    lines: list[str],
    kept: list[int],
    steps: list[list[int]],
) -> Case | None:
    """Return the trace that puts the chunks in again, the last one taken out first."""
    present = set(kept)
    text = source.text[:start] + "".join(lines[n] for n in kept) + source.text[end:]
    records: list[dict[str, Any]] = [{"open": {"path": source.path, "text": text}}]
    last_end, distance, side, num_edits, num_completions = start, 0, "before", 0, 0
    for chunk in reversed(steps):
        at = start + sum(len(lines[n]) for n in present if n < chunk[0])
        written = "".join(lines[n] for n in chunk)
        body = written.strip("\n").lstrip()
        lead = written[: written.index(body)]
        tail = written[len(lead) + len(body) :]
        offset = at + len(lead)
        # Enter, then the line is written behind its indentation.
        records.append({"edit": {"start": at, "end": at, "text": lead + tail}})
        records += [{"cursor": {"offset": offset}}, {"idle": {"ms": 800}}]
        text = text[:at] + lead + tail + text[at:]
        if len(body) >= _SHORTEST_REFERENCE and body not in text:
            records.append({"complete": {"offset": offset, "reference": body}})
            distance = abs(at - last_end)
            side = "before" if last_end <= at else "after"
            num_completions += 1
        for line in body.splitlines(keepends=True):
            records.append({"edit": {"start": offset, "end": offset, "text": line}})
            text = text[:offset] + line + text[offset:]
            offset += len(line)
            num_edits += 1
        num_edits += 1
        last_end = offset
        present.update(chunk)
        records.append({"idle": {"ms": 500}})
    if not num_completions:
        return None
    detail = f"{len(steps)} steps, {num_completions} completions"
    return Case(source.path, records, distance, side, num_edits, detail)
