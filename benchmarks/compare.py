"""Run one benchmark in two checkouts by turns, in pairs: what a change cost, figure by figure.

    python benchmarks/compare.py OLD NEW bench_edit_latency --pairs 4 -- --repeats 5
    python benchmarks/compare.py OLD NEW bench_kernels --shim -- --only rope_shift matmul

OLD and NEW are folders of two checkouts, or one and the same to see the noise. The order within a
pair alternates (old new, new old, ...), so that a slow minute hits both. Each runs its own scripts,
with `OLD/.venv/bin/python` and `NEW/.venv/bin/python` where there are such and they import that
checkout; `--shim` runs one interpreter for both, in which `keyturn` needs no installation: a folder
of links to server, engine and kernels goes on PYTHONPATH (no C library: build it in place first,
`python setup.py build_ext --inplace`). What stands behind `--` goes to the benchmark.

Of every number in the last JSON lines the median over the pairs of new/old is printed, a list of
samples by its median; figures of work, not of time, should stay 1. Times lie in names that end in
_ms, _us or _s and may be at most `--within` percent longer; all other figures are shown only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import harness

LAYERS = ("server", "engine", "kernels")
# About the run and not of it.
_ABOUT = {"date", "commit", "machine", "versions", "seed", "model", "checks", "about"}
# Names of what tells list entries from each other.
_LABELS = ("contender", "context", "model", "precision", "mode", "trace", "policy", "shape", "rows")
_LABELS += ("bits", "dtype", "path", "name")
_IS_TIME = re.compile(r"(^|[._])(ms|us|s|seconds)(\b|_)")

Figures = dict[str, float]


def main() -> None:
    """Run the pairs, print, and save if asked to."""
    options = sys.argv[1:]
    at = options.index("--") if "--" in options else len(options)
    parser = harness.parser(__doc__ or "")
    parser.epilog = "what stands behind -- goes to the benchmark"
    parser.add_argument("old", type=Path, help="folder of a checkout")
    parser.add_argument("new", type=Path, help="folder of the other")
    parser.add_argument("benchmark", help="bench_edit_latency for instance")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--within", type=float, default=3.0, help="percent that times may grow")
    parser.add_argument("--shim", action="store_true", help="keyturn is not installed there")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    args = parser.parse_args(options[:at])
    sides = {"old": args.old.resolve(), "new": args.new.resolve()}
    with contextlib.ExitStack() as stack:
        commands = {
            side: stack.enter_context(prepared(folder, args.shim)) for side, folder in sides.items()
        }
        results: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for pair in range(args.pairs):
            for side in ("old", "new") if pair % 2 == 0 else ("new", "old"):
                print(f"pair {pair + 1} of {args.pairs}: {side}", flush=True)
                interpreter, environment = commands[side]
                script = sides[side] / "benchmarks" / f"{args.benchmark.removesuffix('.py')}.py"
                command = [interpreter, str(script), *options[at + 1 :]]
                results[side].append(last_line(command, sides[side], environment))
    found = ratios(results["old"], results["new"])
    harness.table(
        ["figure", "old", "new", "new/old", "lowest", "highest"],
        [[name, *(shown(value) for value in row)] for name, row in found.items()],
    )
    for side, runs in results.items():
        for check in runs[-1].get("checks", []):
            value, verdict = check["value"], "met" if check["met"] else "MISSED"
            print(f"{side}: {check['name']}: {value} {check['unit']} ({check['target']}) {verdict}")
    times = {name: row[2] for name, row in found.items() if is_time(name)}
    target = f"<= {1 + args.within / 100:g}"
    checks = [harness.check(f"{name}, new/old", value, "", target) for name, value in times.items()]
    if times:
        middle = median(times.values())
        checks.append(harness.check("median of all times, new/old", middle, "", target))
    args.model = args.benchmark
    commits = {side: runs[-1].get("commit") for side, runs in results.items()}
    ratio_of = {name: row[2] for name, row in found.items()}
    saved = {"benchmark": f"compare {args.benchmark}", "pairs": args.pairs, "commits": commits}
    medians = {name: row[:2] for name, row in found.items() if is_time(name)}
    harness.finish("compare", args, saved | {"ratios": ratio_of, "medians": medians}, checks)


@contextlib.contextmanager
def prepared(folder: Path, shim: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the interpreter of a checkout and the environment in which it imports that checkout.

    Raises:
        SystemExit: the checkout has no interpreter of its own, or the interpreter has another
            `keyturn`.
    """
    own = folder / ".venv" / "bin" / "python"
    if not (folder / "benchmarks").is_dir():
        raise SystemExit(f"{folder} is no checkout: it has no benchmarks/")
    with tempfile.TemporaryDirectory() as place:
        interpreter, environment = str(own), dict(os.environ)
        if shim:
            interpreter = sys.executable
            package = Path(place, "keyturn")
            package.mkdir()
            for layer in LAYERS:
                (package / layer).symlink_to(folder / layer, target_is_directory=True)
            # pygls asks for the version of an installed package.
            about = Path(place, "keyturn-0.dist-info")
            about.mkdir()
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: keyturn\nVersion: 0\n")
            others = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
            environment["PYTHONPATH"] = os.pathsep.join([place, *others])
        elif not own.exists():
            raise SystemExit(f"{folder} has no .venv: make one there (make demo), or take --shim")
        probe = "import os, keyturn.server as s; print(os.path.realpath(s.__path__[0]))"
        command = [interpreter, "-c", probe]
        told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if told.stdout.strip() != str(folder / "server"):
            what = told.stdout.strip() or told.stderr.strip()
            raise SystemExit(f"{interpreter} does not import keyturn from {folder}: {what}")
        yield interpreter, environment


def last_line(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a benchmark and return the object that it prints last.

    Raises:
        SystemExit: it fails, or its last line is none.
    """
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode == 0:
        with contextlib.suppress(ValueError):
            return json.loads(lines[-1])
    raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {lines[-1][:500]}")


def numbers(result: Mapping[str, Any], prefix: str = "") -> Figures:
    """Return every number of a result by its path; a list of numbers by its median."""
    found: Figures = {}
    for key, value in result.items():
        name = f"{prefix}{key}"
        if not prefix and key in _ABOUT:
            continue
        if isinstance(value, bool) or value is None or (prefix and key in _LABELS):
            continue
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, Mapping):
            found |= numbers(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            found[name] = float(median(value))
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    labels = [str(item[key]) for key in _LABELS if item.get(key) is not None]
                    found |= numbers(item, f"{name}.{' '.join(labels) or number}.")
    return found


def ratios(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> dict[str, tuple[float, float, float, float, float]]:
    """Return by figure both medians, and median, lowest and highest of new/old over the pairs.

    Figures that only one side has, or that were 0, are left out.
    """
    sides = [[numbers(run) for run in runs] for runs in (old, new)]
    names = [name for name in sides[0][0] if all(name in run for side in sides for run in side)]
    found = {}
    for name in names:
        values = [[run[name] for run in side] for side in sides]
        if 0 in values[0]:
            continue
        pairs = [after / before for before, after in zip(*values, strict=True)]
        both = [median(side) for side in values]
        found[name] = (both[0], both[1], median(pairs), min(pairs), max(pairs))
    return found


def is_time(name: str) -> bool:
    """Whether a figure is a time, of which less is better: a part of its path ends in its unit."""
    return _IS_TIME.search(name) is not None and "_per_s" not in name


def shown(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
