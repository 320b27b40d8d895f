"""Run what needs a GPU, piece after piece, each within its own time; a short table at the end.

    python benchmarks/on_gpu.py OLD --shim --out build/gpu -- --data *.jsonl.gz --traces SETS
    python benchmarks/on_gpu.py OLD --tiny --out build/gpu -- --data *.jsonl.gz
    python benchmarks/on_gpu.py --keep build/gpu/results.jsonl

OLD is the folder of another checkout, which edits are timed against. What stands behind -- goes to
`depth.py`. A GPU is dear: what a piece prints is written as it goes, a piece that fails or takes
too long leaves the others their time, and `--tiny` rehearses all of it on a CPU. The machine may
have neither git nor an installed keyturn: then `--shim`, `--commit` and `--old-commit` help, and
`--keep` appends the results to `benchmarks/results/` at home.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import compare
import harness

HERE = harness.ROOT / "benchmarks"
TESTS = harness.ROOT / "tests" / "engine"
# Of these only what is marked for a GPU; the launches of a graph are all for one.
MARKED = (
    "test_engine_on_gpu.py",
    "test_families.py",
    "test_quant.py",
    "test_attention.py",
    "test_adapter.py",
)


class Piece(NamedTuple):
    """A command of this interpreter, and what it may take in seconds."""

    name: str
    command: list[str]
    limit_s: float


class Result(NamedTuple):
    """How a piece ended, what that took, and what it said last."""

    name: str
    verdict: str
    seconds: float
    last_line: str


def main() -> None:
    """Run the pieces, or keep their results."""
    options = sys.argv[1:]
    at = options.index("--") if "--" in options else len(options)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.epilog = "what stands behind -- goes to depth.py"
    parser.add_argument("old", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--out", type=Path, help="folder for logs and results")
    parser.add_argument("--only", nargs="+", help="these pieces")
    parser.add_argument("--seconds", type=float, default=570, help="for all of them")
    parser.add_argument("--shim", action="store_true", help="keyturn is not installed")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    parser.add_argument("--old-commit", help="what the other checkout is, likewise")
    parser.add_argument("--tiny", action="store_true", help="small, on a CPU: a rehearsal")
    parser.add_argument("--keep", type=Path, metavar="RESULTS", help="append them, and no more")
    args = parser.parse_args(options[:at])
    if args.keep:
        keep(args.keep)
        return
    if args.old is None or args.out is None:
        parser.error("give the other checkout and --out")
    pieces = pieces_of(args.old.resolve(), args.tiny, args.shim, options[at + 1 :])
    if args.only:
        unknown = set(args.only) - {piece.name for piece in pieces}
        if unknown:
            names = ", ".join(piece.name for piece in pieces)
            parser.error(f"no piece {', '.join(sorted(unknown))}; there are {names}")
        pieces = [piece for piece in pieces if piece.name in args.only]
    args.out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + args.seconds
    with contextlib.ExitStack() as stack:
        interpreter, environment = stack.enter_context(compare.prepared(harness.ROOT, args.shim))
        environment |= {"PYTHONUNBUFFERED": "1"}
        if args.commit:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_git(folder / "git", args.old.resolve(), args.old_commit or "?", args.commit)
            environment["PATH"] = os.pathsep.join([str(folder), environment.get("PATH", "")])
        if not args.tiny:
            environment |= {"KEYTURN_KERNELS": "auto", "TRITON_INTERPRET": "0"}
        done = []
        for piece in pieces:
            limit_s = min(piece.limit_s, ends_at - time.monotonic())
            done.append(run(piece, interpreter, environment, limit_s, args.out))
            print(f"{piece.name}: {done[-1].verdict}, {done[-1].seconds:.0f} s", flush=True)
    table(done)


def pieces_of(old: Path, is_tiny: bool, shim: bool, for_depth: list[str]) -> list[Piece]:
    """Return the pieces, what matters most first."""
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]

    def edits(name: str, pairs: int, limit_s: float) -> Piece:
        sides = [str(old), str(harness.ROOT), "bench_edit_gpu", "--pairs", str(pairs)]
        sides += ["--shim"] if shim else []
        small = ["--tiny", "--device", "cpu", "--repeats", "2"] if is_tiny else []
        command = [str(HERE / "compare.py"), *sides, "--", "--only", name, *small]
        return Piece(f"edits-{name}", command, limit_s)

    depth = ["--device", "cpu", "--places", "1", "--repeats", "1"]
    if not is_tiny:
        depth = ["--device", "cuda", "--dtype", "bfloat16", "--places", "100"]
    depth += ["--methods", "lookup", "exact", "--seconds", "20" if is_tiny else "150", *for_depth]
    models = ["--device", "cpu" if is_tiny else "cuda", "--shape", "none"]
    graphs = [str(TESTS / "test_captured_pass.py")]
    marked = ["-m", "gpu", *(str(TESTS / name) for name in MARKED)]
    return [
        Piece("graphs", [*pytest, *graphs], 55),
        edits("1.3b", 1 if is_tiny else 3, 95),
        Piece("depth", [str(HERE / "depth.py"), *depth], 270),
        edits("6.7b", 1 if is_tiny else 2, 75),
        edits("33b", 1, 70),
        Piece("models", [str(HERE / "models.py"), *models], 80),
        Piece("marked", [*pytest, *marked], 150),
    ]


def run(
    piece: Piece, interpreter: str, environment: dict[str, str], limit_s: float, out: Path
) -> Result:
    """Run a piece within its time; what it prints goes to a file, its last line to the results."""
    log, started_at = out / f"{piece.name}.log", time.monotonic()
    if limit_s < 5:
        return Result(piece.name, "no time left", 0.0, "")
    verdict = "ended"
    with log.open("w", encoding="utf-8") as file:
        # A session of its own: what it has started goes with it.
        process = subprocess.Popen(
            [interpreter, *piece.command],
            cwd=harness.ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            verdict = "ended" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            verdict = f"stopped after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    with contextlib.suppress(ValueError):
        json.loads(lines[-1])
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines[-1] + "\n")
    return Result(piece.name, verdict, time.monotonic() - started_at, lines[-1])


def table(done: list[Result]) -> None:
    """Print the checks that count, and how every piece ended."""
    rows: list[list[Any]] = []
    for result in done:
        rows.append([result.name, result.verdict, f"{result.seconds:.0f}", "s", ""])
        found: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            found = json.loads(result.last_line)
        if not found:
            rows.append(["", result.last_line[:80], "", "", ""])
        is_pair = "medians" in found
        for check in found.get("checks", []) if not is_pair else ():
            verdict = "" if check["met"] else "MISSED"
            rows.append(["", check["name"], check["value"], check["target"], verdict])
        for name, (old, new) in found.get("medians", {}).items():
            if name.endswith(("p50_ms", "host_ms")):
                figures = f"{old:.2f} -> {new:.2f}"
                rows.append(["", name, figures, "ms", f"{found['ratios'][name]:.3f}"])
        for row in found.get("runs", []):
            what = f"{row['group']}, {row['method']}: tokens a second, times as fast"
            rows.append(["", what, row["tokens/s"], "", f"{row['times as fast']:.3f}"])
    harness.table(["piece", "what", "value", "target", ""], rows)


def write_git(path: Path, old: Path, old_commit: str, commit: str) -> None:
    """Write a program that says, as git would, which commit a folder is of."""
    lines = f'#!/bin/sh\n[ "$2" = "{old}" ] && echo "{old_commit}" || echo "{commit}"\n'
    path.write_text(lines, encoding="utf-8")
    path.chmod(0o755)


def keep(results: Path) -> None:
    """Append results to those that are kept, each to its benchmark's."""
    for line in results.read_text(encoding="utf-8").splitlines():
        name = json.loads(line)["benchmark"].split()[0]
        with (harness.RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"{name}.jsonl")


if __name__ == "__main__":
    main()
