"""What the answers of `fim_quality.py --answers` are worth, with standard errors, and how sure.

Files of parts may be given together. Shares are in percent; their standard errors are by packages:
holes of one package are alike, so packages are what is drawn (a bootstrap over them). "end" is how
often the model would end behind the true middle, "early" how often inside already. Calibration is
the expected calibration error in ten bins: of single tokens, the likeliest one's probability
against whether it is the true one; of whole answers, the joint probability of what was written
against whether it is exactly the middle.

    python benchmarks/fim_report.py spm.?.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import harness

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
SHARES = ("exact", "exact_raw", "end_right", "early_end")
LENGTHS = ((500, "under 500 tokens"), (1000, "500 to 999"), (1 << 30, "1,000 and more"))
_RESAMPLES = 200


def main() -> None:
    """Print the tables, and as the last line everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("answers", type=Path, nargs="+")
    args = parser.parse_args()
    rows = read(args.answers)
    if not rows:
        raise SystemExit(f"no answers in {', '.join(map(str, args.answers))}")
    found = {label: shares(mine) for label, mine in cells(rows)}
    header = ["set", "n", *(part for name in SHARES for part in (name, "±")), "loss"]
    lines = [
        [label, item["n"], *(item.get(f"{name}{end}") for name in SHARES for end in ("", "_se"))]
        for label, item in found.items()
    ]
    losses = [item["loss"] for item in found.values()]
    harness.table(header, [[*line, loss] for line, loss in zip(lines, losses, strict=True)])
    sure = calibrations(rows)
    for what, item in sure.items():
        print(f"\ncalibration of {what}: {item['ece']:.4f} ± {item['ece_se']:.4f}, n {item['n']}")
        harness.table(["n", "probability", "right"], item["bins"])
    print(json.dumps({"shares": found, "calibration": sure}))


def read(paths: list[Path]) -> list[Row]:
    """Return the rows of some files, each task once."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return list({row["name"]: row for row in map(json.loads, lines)}.values())


def cells(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the lines of the table: each set, and within it languages, lengths and kinds."""
    keys: tuple[Callable[[Row], str], ...] = (
        lambda row: row["language"],
        length_of,
        lambda row: row["kind"],
    )
    for group in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == group]
        yield group, mine
        for key in keys:
            for value in sorted({key(row) for row in mine}):
                if value:
                    yield f"{group} {value}", [row for row in mine if key(row) == value]


def length_of(row: Row) -> str:
    """Return the bin of a task's context; "" where it was not counted."""
    tokens = row["context_tokens"]
    return next(name for most, name in LENGTHS if tokens < most) if tokens else ""


def shares(rows: list[Row]) -> dict[str, Any]:
    """Return how often each of `SHARES` holds, with standard errors, and the loss."""
    found: dict[str, Any] = {"n": len(rows)}
    for name in SHARES:
        clusters: dict[str, list[bool]] = {}
        for row in rows:
            if row.get(name) is not None:
                clusters.setdefault(package_of(row), []).append(bool(row[name]))
        if clusters:
            found[name] = 100 * fmean(flag for part in clusters.values() for flag in part)
            found[f"{name}_se"] = 100 * error_by_cluster(list(clusters.values()))
    tokens = sum(row["tokens"] for row in rows)
    found["loss"] = sum(row["nll"] for row in rows if row["tokens"]) / tokens if tokens else None
    return found


def package_of(row: Row) -> str:
    """Return what a task was drawn from: the package of a held-out one, else the task itself."""
    parts = row["name"].split("/")
    return "/".join(parts[1 : 3 if parts[1].startswith("@") else 2]) if row["kind"] else row["name"]


def error_by_cluster(clusters: list[list[bool]]) -> float:
    """Return the standard error of a mean whose clusters were drawn whole."""
    sums = [(sum(part), len(part)) for part in clusters]
    rng, means = random.Random(0), []
    for _ in range(_RESAMPLES):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(hits for hits, _ in drawn) / sum(num for _, num in drawn))
    return stdev(means)


def calibrations(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Return the calibration of tokens and of answers; rows without probabilities are left out."""
    sys.path.insert(0, str(ROOT))
    try:
        from training.evaluation.calibration import calibration
    finally:
        sys.path.remove(str(ROOT))
    tokens = [(row.get("confidence", []), row.get("is_right", [])) for row in rows]
    whole = [row for row in rows if row.get("joint") is not None]
    sets = {
        "tokens": (
            [p for part, _ in tokens for p in part],
            [y for _, part in tokens for y in part],
        ),
        "answers": ([row["joint"] for row in whole], [row["exact_raw"] for row in whole]),
    }
    found = {}
    for what, (probabilities, right) in sets.items():
        if probabilities:
            item = calibration(probabilities, right)
            item_of = {"n": len(right), "ece": item.error, "ece_se": item.standard_error}
            found[what] = item_of | {"bins": item.bins}
    return found


if __name__ == "__main__":
    main()
