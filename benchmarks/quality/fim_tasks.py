"""Holes in texts: what is asked, and HumanEval-Infilling's three sets of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SINGLE, MULTI, RANDOM, HELD_OUT = "single-line", "multi-line", "random-span", "held-out"
_SETS = {"SingleLineInfilling": SINGLE, "MultiLineInfilling": MULTI, "RandomSpanInfilling": RANDOM}


@dataclass(frozen=True)
class Task:
    """One hole.

    Attributes:
        name: unlike any other task's.
        group: the set that it is of.
        number: its place in the set's file.
        prefix: the text before the cursor.
        suffix: the text after it.
        middle: what stood there.
        checks: tests to be run after the program, if there are any.
        path: file name of the document.
        kind: what the hole is in the syntax, see `training/data/spans.py`.
        language: "py", "js" or "ts".
        context_tokens: tokens of prefix and suffix, counted with the embedded model's tokenizer;
            0 if not counted.
    """

    name: str
    group: str
    number: int
    prefix: str
    suffix: str
    middle: str
    checks: str = ""
    path: str = "task.py"
    kind: str = ""
    language: str = "py"
    context_tokens: int = 0

    def program(self, middle: str) -> str:
        """Return the program with that middle, followed by its tests."""
        return f"{self.prefix}{middle}{self.suffix}\n{self.checks}"


def read_human_eval(path: Path) -> Iterator[Task]:
    """Read one of the sets: ….jsonl or ….jsonl.gz.

    Lines are asked for as an editor does it: their indentation is typed already, so it belongs to
    the prefix, and the suffix begins with the cursor line's own newline. Random spans are asked
    for as they are.

    Raises:
        SystemExit: the file is of none of the sets.
    """
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        for number, raw in enumerate(file):
            row = json.loads(raw)
            family = row["task_id"].split("/")[0].removesuffix("Light")
            if family not in _SETS:
                raise SystemExit(f"{path} holds {family}; take one of {', '.join(_SETS)}")
            group, wanted = _SETS[family], row["canonical_solution"]
            typed, code, ending = "", wanted, ""
            if group != RANDOM:
                code = wanted.lstrip(" \t")
                typed = wanted[: len(wanted) - len(code)]
                ending = "\n" if wanted.endswith("\n") else ""
                code = code.strip() if group == SINGLE else code.removesuffix("\n")
            yield Task(
                name=row["task_id"],
                group=group,
                number=number,
                prefix=row["prompt"] + typed,
                suffix=ending + row["suffix"],
                middle=code,
                checks=f"{row['test']}\ncheck({row['entry_point']})\n",
            )


def chosen(
    tasks: list[Task], *, sample: int = 0, every: int = 1, parity: str | None = None, seed: int = 0
) -> list[Task]:
    """Return the tasks of one set that are to be asked, in their order.

    Args:
        tasks: the whole set.
        sample: how many of those that are left to draw, the same ones for a seed; 0 takes all.
        every: leave out all but every K-th.
        parity: "even" or "odd" leaves out those with other numbers.
        seed: of the draw.
    """
    left = tasks[::every]
    if parity is not None:
        left = [task for task in left if task.number % 2 == (parity == "odd")]
    if not 0 < sample < len(left):
        return left
    places = random.Random(seed).sample(range(len(left)), sample)
    return [left[place] for place in sorted(places)]
