"""What every benchmark shares: options, alternating runs, tables, and the closing JSON object."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("keyturn", "torch", "triton", "tokenizers", "pygls")


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks take."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--save", action="store_true", help="append to benchmarks/results/")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--model", default="embedded")
    made.add_argument("--threads", type=int, default=0, help="CPU threads, 0: torch's choice")
    return made


def part_of(text: str) -> tuple[int, int]:
    """Parse "2/8", the second of eight parts.

    Raises:
        argparse.ArgumentTypeError: there is no such part.
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is no part; write for instance 1/8")
    return int(number), int(count)


def alternate(
    runs: dict[str, Callable[[], float]], *, repeats: int, warm_up: int
) -> dict[str, list[float]]:
    """Call each of `runs` in turn, round after round; return what the rounds after warm-up gave.

    Alternating lets a slow second of the machine hit every candidate alike.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + repeats):
        for name, run in runs.items():
            value = run()
            if number >= warm_up:
                found[name].append(value)
    return found


def check(name: str, value: float | None, unit: str, target: str) -> dict[str, Any]:
    """Hold a figure against its target, ">= 15" or "<= 3" for instance."""
    relation, bound = target.split()
    met = value is not None
    if value is not None:
        met = value >= float(bound) if relation == ">=" else value <= float(bound)
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people."""
    lines = [[*map(_cell, row)] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]), flush=True)


def finish(
    name: str, args: argparse.Namespace, figures: dict[str, Any], checks: list[dict[str, Any]]
) -> None:
    """Print the checks for people and everything as the last line; append it with --save."""
    for item in checks:
        verdict = "met" if item["met"] else "MISSED"
        print(f"{item['name']}: {_cell(item['value'])} {item['unit']} ({item['target']}) {verdict}")
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # A copy of the tree on another machine may have no git: then an option says it.
        "commit": getattr(args, "commit", None) or commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **installed()},
        "seed": args.seed,
        "model": args.model,
        **figures,
        "checks": checks,
    }
    line = json.dumps(result)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


def commit() -> str:
    """Return the commit that runs, marked if the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    if shutil.which("git") is None:
        return "unknown"
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def installed() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores and GPU."""
    import torch

    processor = platform.processor() or platform.machine()
    if (cpu := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in cpu.open() if line[:10] == "model name"]
        processor = names[0] if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "num_cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.1f}"
    return "-" if value is None else str(value)
