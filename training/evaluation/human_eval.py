"""HumanEval-Infilling, single lines, as an editor asks: exact lines, and pass@1 by execution.

The indentation is typed already, and the suffix begins with the line's own newline. "exact": the
first line of the output, stripped, is the reference; "passed": the program with it passes its
tests. The programs are run in processes with little time and memory, and no other protection.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from ..data.layouts import LAYOUTS, arrange, segments
from ..model.decoder import Model
from .greedy import greedy

MAX_NEW = 72  # tokens of an answer
CPU_S, WALL_S, MEMORY_BYTES, FILE_BYTES = 4, 6, 4 << 30, 1 << 20  # of a program

Task = dict[str, Any]


def tasks(path: Path, step: int) -> list[Task]:
    """Return every STEP-th task with the text before and after the cursor."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::step]
    for row in rows:
        want = row["canonical_solution"]
        row["before"] = row["prompt"] + want[: len(want) - len(want.lstrip(" \t"))]
        row["after"] = ("\n" if want.endswith("\n") else "") + row["suffix"]
    return rows


def prompt(tokenizer: Tokenizer, before: str, after: str, layout: str) -> list[int]:
    """Return the tokens of a prompt in a layout, one of `layouts.LAYOUTS`."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    parts = {"prefix": encode(before), "tail": [], "suffix": encode(after)}
    return arrange(segments(before, "", after, LAYOUTS.index(layout)), parts)[0]


def infill(
    model: Model, tokenizer: Tokenizer, rows: list[Task], layout: str, depth: int, batch_size: int
) -> list[tuple[str, bool]]:
    """Return the first line of each task's answer, and whether it ended by itself there."""
    words = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    halt = torch.tensor(["\n" in word for word in words], device=model.embedding.device)
    prompts = [prompt(tokenizer, row["before"], row["after"], layout) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    out = [("", False)] * len(rows)
    for start in tqdm(range(0, len(order), batch_size), f"{layout}.{depth}", unit=" batches"):
        part = order[start : start + batch_size]
        answers = greedy(model, [prompts[i] for i in part], MAX_NEW, depth, halt=halt)
        for i, ids in zip(part, answers.ids, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=False)
            out[i] = text.split("\n")[0], "\n" not in text and len(ids) < MAX_NEW
    return out


def run_program(source: str) -> bool:
    """Run a program in a process with little time and memory; return whether it exits with 0."""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-"],
                input=source.encode(),
                cwd=folder,
                timeout=WALL_S,
                preexec_fn=limits,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def human_eval(
    model: Model, tokenizer: Tokenizer, rows: list[Task], runs: list[str], batch_size: int
) -> tuple[dict[str, Any], list[Task]]:
    """Evaluate.

    Args:
        model: on its device.
        tokenizer: its tokenizer.
        rows: of `tasks`.
        runs: "spm.30" for instance: layout, and number of layers.
        batch_size: tasks decoded together.

    Returns:
        The figures of each run, and every answer.
    """
    answers: list[Task] = []
    for run in runs:
        layout, depth = run.split(".")
        lines = infill(model, tokenizer, rows, layout, int(depth), batch_size)
        for number, (row, (line, ended)) in enumerate(zip(rows, lines, strict=True)):
            tests = f"\n{row['test']}\ncheck({row['entry_point']})\n"
            answers.append(
                {
                    "run": run,
                    "task": row["task_id"],
                    "number": number,
                    "line": line,
                    "ended": ended,
                    "exact": line.strip() == row["canonical_solution"].strip(),
                    "program": row["before"] + line + row["after"] + tests,
                }
            )
    programs = list(dict.fromkeys(answer["program"] for answer in answers))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = tqdm(pool.map(run_program, programs), "programs", total=len(programs))
        passed = dict(zip(programs, verdicts, strict=True))
    for answer in answers:
        answer["passed"] = passed[answer.pop("program")]
    return {run: _figures([a for a in answers if a["run"] == run]) for run in runs}, answers


def _figures(answers: list[Task]) -> dict[str, float]:
    """Return shares of a run's answers; tasks of odd numbers are kept out of all tuning."""

    def mean(part: list[Task], key: str) -> float:
        return round(float(np.mean([a[key] for a in part])), 4) if part else 0.0

    odd = [a for a in answers if a["number"] % 2]
    figures = {key: mean(answers, key) for key in ("exact", "passed", "ended")}
    figures |= {"n": len(answers), "empty": round(1 - mean([*map(_full, answers)], "full"), 4)}
    return figures | {f"odd_{key}": mean(odd, key) for key in ("exact", "passed")}


def _full(answer: Task) -> Task:
    return {"full": bool(answer["line"].strip())}
