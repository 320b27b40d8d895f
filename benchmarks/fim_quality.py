r"""Fill-in-the-middle quality as users get it: the product's prompts, early stop and trimming.

Sets: HumanEval-Infilling's single lines (also through the language server), several lines and
random spans (--data), and holes in packages that nothing here was trained on (--held-out). Single
lines, exact: the first line of the result, stripped, is the reference line; it is not trimmed, so
what the server's own decisions cost is the difference to its line in the table. All others, exact:
what the server would insert is the whole middle, white space at the ends aside; "raw" is the
model's own end instead. The other measures are in `fim_metrics.py`. Loss is that of the true
middle, in nats per token; "end" is how often the model would end behind it, "early" how often
inside already.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/fim_quality.py --data HumanEval-*.jsonl.gz --held-out --jobs 2 --run-tests
    python benchmarks/fim_quality.py --model base --held-out --answers base.jsonl
    python benchmarks/fim_compare.py embedded.jsonl base.jsonl

The wider held-out set, 1,100 holes of each language and of each length, in parts that may run
anywhere, at any time, and are put together afterwards:

    python benchmarks/fim_quality.py --held-out 3300 --wider --only engine --part 1/50 \
        --answers spm.1.jsonl
    cat spm.*.jsonl > all.jsonl; python benchmarks/fim_report.py all.jsonl

What a mark of what is wanted is worth to a model that was trained to see it (`wanted_ids` in its
fim.json), where the server's rules tell, and where it is known:

    for by in none rules truth; do
      python benchmarks/fim_quality.py --model FILE.gguf --data HumanEval-Multi*.jsonl.gz \
          --held-out --only engine --wanted $by --answers $by.jsonl
    done; python benchmarks/fim_compare.py none.jsonl truth.jsonl

Go, Rust, Java, C and C++, from what `training.collect` made of its reserved packages:

    python benchmarks/fim_quality.py --held-out 1500 --documents data/held_compiled.bin.zst
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

import harness
from quality import fim_fetch, fim_held_out, fim_metrics
from quality.fim_ask import WANTED_BY, Answer, ask_engine, ask_server, rules_and_truth
from quality.fim_tasks import HELD_OUT, SINGLE, Task, chosen, read_human_eval

from keyturn.engine.files.catalog import EMBEDDED, resolve
from keyturn.engine.files.gguf_config import read_config
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.tokenizer_files import gguf_tokenizer

# What the embedded model reached when it was shipped, in percent of all 1,033 tasks, and how many
# points less are accepted: the standard error of such a figure is 1.5.
ALONE = {"spm": 43.2, "psm": 43.3}
WITHIN = 3.0
NUM_HELD_OUT, NUM_SAMPLED = 300, 200
Part = list[tuple[Task, Answer]]


def main() -> None:
    """Run, print, and save if asked to."""
    args = options()
    tasks = read_tasks(args)
    if not tasks:
        raise SystemExit("nothing to ask: give --data FILES, --held-out or both")
    if missing := fim_metrics.missing():
        print(f"without {', '.join(missing)} (extra bench) only exact matches are counted")
    name, model = Path(args.model).name, args.model
    if model == "base":
        model, args.layout = str(fim_fetch.base_model(args.cache)), "own"
    elif args.fim is not None:
        model = str(fim_fetch.with_sidecar(Path(model), args.fim, args.cache))
    layout = None if args.layout == "own" else args.layout

    found: dict[str, dict[str, Any]] = {}
    single = [task for task in tasks if task.group == SINGLE]
    lines: dict[str, list[str]] = {}
    if single and args.only in (None, "server"):
        start = time.perf_counter()
        answers = ask_server(single, model, layout, threads=args.threads)
        part = list(zip(single, answers, strict=True))
        found["language server"] = figures(part, passes(part, args))
        found["language server"]["seconds"] = time.perf_counter() - start
        lines["language server"] = [answer.text for answer in answers]
    if args.only in (None, "engine"):
        start = time.perf_counter()
        answers = ask_engine(
            tasks, model, layout, wanted_by=args.wanted, threads=args.threads, jobs=args.jobs
        )
        seconds = time.perf_counter() - start
        part = list(zip(tasks, answers, strict=True))
        passed = passes(part, args)
        for label, some in groups(part):
            found[label] = figures(some, passed)
        print(f"the engine took {seconds:.0f} s for {len(tasks)} tasks, scoring included")
        if single:
            found["engine alone"]["seconds"] = seconds * len(single) / len(tasks)
            lines["engine alone"] = [a.text for t, a in part if t.group == SINGLE]
        if args.answers is not None:
            write_answers(args.answers, part, passed)
    show(found)

    differ = (
        [
            f"{task.name}: the language server gives {a!r}, the engine alone {b!r}"
            for task, a, b in zip(single, *lines.values(), strict=True)
            if a.strip() != b.strip()
        ]
        if len(lines) == 2
        else []
    )
    print("\n".join(differ[:10]))
    checks = []
    if lines and name == EMBEDDED and layout in ALONE:
        exact, target = (
            found[next(iter(lines))]["exact_percent"],
            f">= {ALONE[layout] - WITHIN:.1f}",
        )
        checks = [harness.check(f"HumanEval lines exact, {layout}", exact, "%", target)]
    saved: dict[str, Any] = {"layout": args.layout, "num_tasks": len(single)}
    saved |= {"wanted": args.wanted, "rules_say": rules_and_truth(tasks)}
    print("the server's rules say", ", ".join(f"{k}: {n}" for k, n in saved["rules_say"].items()))
    saved |= {"num_different": len(differ)} if len(lines) == 2 else {}
    saved |= {label.replace(" ", "_"): item for label, item in found.items()}
    if not checks:  # the README shows the newest run that has them
        saved["benchmark"] = f"fim_quality of {name}"
    args.model = name  # not where it lies
    harness.finish("fim_quality", args, saved, checks)


def options() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = harness.parser(__doc__ or "")
    add = parser.add_argument
    add("--data", type=Path, nargs="+", default=[], help="HumanEval-….jsonl[.gz], any of the three")
    add("--sample", type=int, default=NUM_SAMPLED, help="of each set but the single lines, 0: all")
    add("--every", type=int, default=1, help="take every K-th task of those files")
    add("--parity", choices=("even", "odd"), help="leave out the tasks with other numbers")
    add("--held-out", type=int, nargs="?", const=NUM_HELD_OUT, default=0, metavar="N")
    add("--wider", action="store_true", help="draw them from four times as many packages")
    add("--documents", type=Path, help="draw them from training's held_compiled.bin.zst instead")
    add("--part", type=harness.part_of, default=(1, 1), metavar="I/N", help="of the tasks")
    add("--cache", type=Path, default=fim_fetch.CACHE, help="where fetched packages are kept")
    add("--fim", type=Path, help="fim.json to read a .gguf with that has none beside it")
    add("--layout", choices=("spm", "psm", "own"), default="spm", help="own: the model's default")
    add("--only", choices=("server", "engine"), help="leave the other out")
    add(
        "--wanted",
        choices=WANTED_BY,
        default="rules",
        help="whether the engine is told that one line or several are wanted: where the server "
        "would say so, never, or as the true middle has it",
    )
    add("--jobs", type=int, default=1, help="processes that share the engine's tasks")
    add("--run-tests", action="store_true", help="pass@1: EXECUTES what is written")
    add("--answers", type=Path, help="write a JSON line for each task, see fim_compare.py")
    parser.epilog = "--model base fetches SmolLM2-135M and completes left to right"
    return parser.parse_args()


def read_tasks(args: argparse.Namespace) -> list[Task]:
    """Return all tasks that the options name."""
    tasks: list[Task] = []
    for path in args.data:
        whole = list(read_human_eval(path))
        sample = 0 if whole[0].group == SINGLE else args.sample
        tasks += chosen(whole, sample=sample, every=args.every, parity=args.parity, seed=args.seed)
    if args.held_out:
        # Always the same tokenizer: the tasks must not depend on the model.
        file = GGUFFile(resolve(EMBEDDED))
        tokenizer, _ = gguf_tokenizer(file, read_config(file).vocab_size)
        tasks += fim_held_out.draw(
            fim_held_out.reserved_files(args.documents)
            if args.documents
            else fim_fetch.held_out_files(args.cache, args.wider),
            args.held_out,
            seed=args.seed,
            num_tokens=lambda text: len(tokenizer.encode(text).token_ids),
        )
    number, count = args.part
    return sorted(tasks, key=lambda task: task.group != SINGLE)[number - 1 :: count]


def groups(part: Part) -> Iterator[tuple[str, Part]]:
    """Yield the table's lines and what belongs to each."""
    for group in dict.fromkeys(task.group for task, _ in part):
        mine = [pair for pair in part if pair[0].group == group]
        yield ("engine alone" if group == SINGLE else group), mine
        if group == SINGLE:
            odd = [pair for pair in mine if pair[0].number % 2]
            if 0 < len(odd) < len(mine):
                yield f"{SINGLE} odd", odd
        if group == HELD_OUT:
            for key in (lambda t: t.kind, lambda t: t.language, fim_held_out.length_of):
                for value in sorted({key(task) for task, _ in mine}):
                    yield f"{group} {value}", [pair for pair in mine if key(pair[0]) == value]


def exact(task: Task, text: str) -> bool:
    """Whether a text is the task's middle."""
    if task.group == SINGLE:
        return text.strip() == task.middle
    return fim_metrics.is_exact(text, task.middle)


def figures(part: Part, passed: dict[str, bool]) -> dict[str, Any]:
    """Return what answers are worth: shares in percent, measures from 0 to 100, nats per token."""
    share = 100 * fmean(exact(task, answer.text) for task, answer in part)
    tests = [passed[task.name] for task, _ in part if task.name in passed]
    found: dict[str, Any] = {
        "num_tasks": len(part),
        "exact_percent": share,
        "standard_error": math.sqrt(share * (100 - share) / len(part)),
        "exact_raw_percent": 100 * fmean(exact(task, answer.raw) for task, answer in part),
        "pass_percent": 100 * fmean(tests) if tests else None,
        "num_empty": sum(not answer.text.strip() for _, answer in part),
    }
    if not fim_metrics.missing():
        scored = [fim_metrics.scores(answer.text, task.middle) for task, answer in part]
        found |= {name: fmean(item[name] for item in scored) for name in fim_metrics.NAMES}
        texts = [(answer.text, task.middle) for task, answer in part]
        found["corpus_bleu"] = fim_metrics.corpus_bleu(*zip(*texts, strict=True))
    num_tokens = sum(answer.num_tokens for _, answer in part)
    if num_tokens:
        found["loss"] = sum(answer.nll for _, answer in part) / num_tokens
        found["perplexity"] = math.exp(found["loss"])
        ends = [answer for _, answer in part if answer.end_right is not None]
        if ends:
            found["end_right_percent"] = 100 * fmean(bool(answer.end_right) for answer in ends)
            found["early_end_percent"] = 100 * fmean(bool(answer.early_end) for answer in ends)
    found["answer_ms_p50"] = median(answer.ms for _, answer in part)
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a line for each group of tasks."""
    columns = {
        "n": "num_tasks",
        "exact": "exact_percent",
        "±": "standard_error",
        "raw": "exact_raw_percent",
        "pass": "pass_percent",
        **{name: name for name in fim_metrics.NAMES},
        "loss": "loss",
        "ppl": "perplexity",
        "end": "end_right_percent",
        "early": "early_end_percent",
        "ms": "answer_ms_p50",
    }
    rows = [[label, *map(item.get, columns.values())] for label, item in found.items()]
    harness.table(["set", *columns], rows)


def write_answers(path: Path, part: Part, passed: dict[str, bool]) -> None:
    """Write a JSON line for each task, in their order."""
    with path.open("w", encoding="utf-8") as file:
        for task, answer in part:
            row = {
                "name": task.name,
                "set": task.group,
                "kind": task.kind,
                "language": task.language,
                "context_tokens": task.context_tokens,
                "prompt_tokens": answer.num_prompt_tokens,
                "expected": task.middle,
                "got": answer.text,
                "raw": answer.raw,
                "exact": exact(task, answer.text),
                "exact_raw": exact(task, answer.raw),
                "passed": passed.get(task.name),
                "nll": answer.nll,
                "tokens": answer.num_tokens,
                "end_right": answer.end_right,
                "early_end": answer.early_end,
                "joint": answer.joint,
                "confidence": [round(p, 4) for p in answer.confidence],
                "is_right": [int(right) for right in answer.is_right],
                "ms": answer.ms,
            }
            file.write(json.dumps(row) + "\n")


def passes(part: Part, args: argparse.Namespace) -> dict[str, bool]:
    """Return by name which programs pass their tests, nothing unless they may be run."""
    asked = [pair for pair in part if args.run_tests and pair[0].checks]
    with ThreadPoolExecutor(args.jobs) as pool:
        programs = [task.program(answer.text) for task, answer in asked]
        return dict(zip((task.name for task, _ in asked), pool.map(runs, programs), strict=True))


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
