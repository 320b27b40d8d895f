"""HumanEval-Infilling single-line, asked as an editor asks: through the language server.

The indentation is typed already, and the suffix begins with the cursor line's own newline. Exact:
the first line of the result, stripped, is the reference line. Beside it, the engine alone on the
same prompts: what trimming, transport and the server's own decisions cost is the difference.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import harness
from lsp_client import LspClient

from keyturn.engine.config import CompletionParams
from keyturn.engine.engine import Engine
from keyturn.server.settings import Settings

KEYTURN = str(Path(sys.executable).parent / "keyturn")
MAX_TOKENS = 72
# What the embedded model reaches in the code that trained it, in percent of all 1,033 tasks, and
# how many points less are accepted: the standard error of such a figure is 1.5.
ALONE = {"spm": 40.3, "psm": 40.0}
WITHIN = 3.0


@dataclass(frozen=True)
class Task:
    """One hole of one line; the indentation belongs to the prefix."""

    name: str
    prefix: str
    suffix: str
    line: str
    checks: str

    def program(self, line: str) -> str:
        """Return the program with that line, followed by its tests."""
        return f"{self.prefix}{line}{self.suffix}\n{self.checks}"


@dataclass
class Outcome:
    """What came back for the tasks, in their order."""

    lines: list[str]
    answer_ms: list[float]
    total_s: float


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, required=True, help="…SingleLineInfilling.jsonl[.gz]")
    parser.add_argument("--every", type=int, default=1, help="take every K-th task")
    parser.add_argument("--layout", choices=("spm", "psm"), default="spm")
    parser.add_argument("--only", choices=("server", "engine"), help="leave the other out")
    parser.add_argument("--run-tests", action="store_true", help="pass@1: EXECUTES what is written")
    args = parser.parse_args()
    tasks = list(read_tasks(args.data))[:: args.every]
    ways = {"server": ("language server", ask_server), "engine": ("engine alone", ask_engine)}
    outcomes = {
        name: ask(tasks, args) for way, (name, ask) in ways.items() if args.only in (None, way)
    }
    measured = {name: scores(outcome, tasks, args.run_tests) for name, outcome in outcomes.items()}
    asked = next(iter(outcomes))
    harness.table(
        ["asked", "layout", "tasks", *measured[asked]],
        [[name, args.layout, len(tasks), *found.values()] for name, found in measured.items()],
    )
    pairs = zip(tasks, *(outcomes[name].lines for name in (asked, list(outcomes)[-1])), strict=True)
    differ = [
        f"{task.name}: {asked} gives {a!r}, the engine alone {b!r}"
        for task, a, b in pairs
        if a.strip() != b.strip()
    ]
    print("\n".join(differ[:10]))
    exact, target = measured[asked]["exact_percent"], f">= {ALONE[args.layout] - WITHIN:.1f}"
    checks = [harness.check(f"HumanEval lines exact, {args.layout}", exact, "%", target)]
    figures = {"layout": args.layout, "num_tasks": len(tasks), "num_different": len(differ)}
    figures |= {name.replace(" ", "_"): found for name, found in measured.items()}
    harness.finish("fim_quality", args, figures, checks if args.model == "embedded" else [])


def scores(outcome: Outcome, tasks: list[Task], run_tests: bool) -> dict[str, Any]:
    """Return what the lines are worth, in percent of the tasks, and how long they took."""
    pairs = list(zip(tasks, outcome.lines, strict=True))
    share = 100 * sum(line.strip() == task.line for task, line in pairs) / len(tasks)
    found: dict[str, Any] = {
        "exact_percent": share,
        "standard_error": math.sqrt(share * (100 - share) / len(tasks)),
        "num_empty": sum(not line.strip() for line in outcome.lines),
        "seconds": outcome.total_s,
        "answer_ms_p50": median(outcome.answer_ms),
    }
    if run_tests:
        passed = sum(runs(task.program(line)) for task, line in pairs)
        found["pass_percent"] = 100 * passed / len(tasks)
    return found


def read_tasks(path: Path) -> Iterator[Task]:
    """Read the tasks, moving the indentation of the line into the prefix."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        for raw in file:
            row = json.loads(raw)
            wanted = row["canonical_solution"]
            code = wanted.lstrip(" \t")
            yield Task(
                name=row["task_id"],
                prefix=row["prompt"] + wanted[: len(wanted) - len(code)],
                suffix=("\n" if wanted.endswith("\n") else "") + row["suffix"],
                line=code.strip(),
                checks=f"{row['test']}\ncheck({row['entry_point']})\n",
            )


def ask_engine(tasks: list[Task], args: argparse.Namespace) -> Outcome:
    """Complete in this process, untrimmed, up to the end of the line."""
    engine = Engine(Settings(num_threads=args.threads).engine_config())
    engine.load(args.model)
    params = CompletionParams(MAX_TOKENS, 0.0, 1.0, 0, ("\n",), 0.0)
    lines, times, start = [], [], time.perf_counter()
    for task in tasks:
        text = task.prefix + task.suffix
        session = engine.open(
            "task", text, path="task.py", model=args.model, policy="turn", layout=args.layout
        )
        completion = session.complete(len(task.prefix), params, lambda: None)
        lines.append(completion.text)
        times.append(completion.total_ms)
    return Outcome(lines, times, time.perf_counter() - start)


def ask_server(tasks: list[Task], args: argparse.Namespace) -> Outcome:
    """Open each task as a document of `keyturn serve` and ask for an inline completion."""
    options = {
        "model": args.model,
        "layout": args.layout,
        "num_threads": args.threads,
        "max_tokens": MAX_TOKENS,
        "time_budget_ms": 0,
    }
    lines, times = [], []
    with LspClient([KEYTURN, "serve", "--stdio"], options) as client:
        start = 0.0
        for number, task in enumerate(tasks):
            uri = f"file:///tasks/{number}.py"
            item = {"uri": uri, "languageId": "python", "version": 1}
            document = {"textDocument": item | {"text": task.prefix + task.suffix}}
            client.notify("textDocument/didOpen", document)
            row = task.prefix.count("\n")
            column = len(task.prefix) - task.prefix.rfind("\n") - 1
            asked = time.perf_counter()
            start = start or asked
            answer = client.request(
                "textDocument/inlineCompletion",
                {
                    "textDocument": {"uri": uri},
                    "position": {"line": row, "character": column},
                    "context": {"triggerKind": 1},
                },
            )
            times.append((time.perf_counter() - asked) * 1e3)
            items = answer if isinstance(answer, list) else (answer or {}).get("items", [])
            lines.append(inserted(items[0], column) if items else "")
            client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        total = time.perf_counter() - start
    return Outcome(lines, times, total)


def inserted(item: dict[str, Any], column: int) -> str:
    """Return the first line of what an item puts at the cursor."""
    typed = column - item["range"]["start"]["character"] if item.get("range") else 0
    return item["insertText"][typed:].split("\n")[0]


def runs(program: str) -> bool:
    """Return whether a program ends without an error, within limits on time and memory."""
    limited = (
        "import resource as r; r.setrlimit(r.RLIMIT_CPU, (4, 4)); "
        "r.setrlimit(r.RLIMIT_AS, (1 << 32, 1 << 32)); r.setrlimit(r.RLIMIT_FSIZE, (1, 1)); "
        "import sys; exec(compile(sys.stdin.read(), 'program', 'exec'))"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-c", limited]
        try:
            done = subprocess.run(
                command, input=program, text=True, cwd=folder, timeout=6, capture_output=True
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


if __name__ == "__main__":
    main()
