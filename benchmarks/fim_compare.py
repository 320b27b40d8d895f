"""Compare two models' answers to the same tasks, as `fim_quality.py --answers` writes them.

Each task is a pair. Wins are the tasks of which something holds for the first model only, losses
those of the second only; z is that of the sign test on them (McNemar's, without correction). Early
ends are better rare. Of the loss, wins are the tasks of which the first has less per token, and z
is that of the mean difference, positive where the first is better.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import harness

SHARES = ("exact", "exact_raw", "passed", "end_right", "early_end")
Row = dict[str, Any]


def main() -> None:
    """Print a table for two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    args = parser.parse_args()
    pairs, num_alone = paired(args.first, args.second)
    if not pairs:
        raise SystemExit(f"{args.first} and {args.second} have no task in common")
    if num_alone:
        print(f"{num_alone} tasks are in one of the files only")
    header = ["set", "what", "n", "first", "second", "wins", "losses", "ties", "z"]
    harness.table(header, compared(pairs))


def paired(first: Path, second: Path) -> tuple[list[tuple[Row, Row]], int]:
    """Return the rows of the same task, and how many tasks are in one file only."""
    one, other = _read(first), _read(second)
    return [(one[name], other[name]) for name in one if name in other], len(one.keys() ^ other)


def compared(pairs: list[tuple[Row, Row]]) -> Iterable[list[object]]:
    """Yield the table's lines: shares in percent and losses in nats per token, by set."""
    for group in dict.fromkeys(first["set"] for first, _ in pairs):
        mine = [pair for pair in pairs if pair[0]["set"] == group]
        for what in SHARES:
            both = [
                (bool(a[what]), bool(b[what]))
                for a, b in mine
                if a.get(what) is not None and b.get(what) is not None
            ]
            if both:
                wins, losses, z = sign_test(both)
                shares = (100.0 * fmean(pair[i] for pair in both) for i in (0, 1))
                ties = len(both) - wins - losses
                yield [group, what, len(both), *shares, wins, losses, ties, z]
        if losses := [
            (a["nll"] / a["tokens"], b["nll"] / b["tokens"])
            for a, b in mine
            if a.get("tokens") and b.get("tokens")
        ]:
            sums = (
                sum(p[i]["nll"] for p in mine) / sum(p[i]["tokens"] for p in mine) for i in (0, 1)
            )
            less, more = (sum(a < b for a, b in losses), sum(a > b for a, b in losses))
            yield [
                group,
                "loss",
                len(losses),
                *sums,
                less,
                more,
                len(losses) - less - more,
                mean_z([b - a for a, b in losses]),
            ]


def sign_test(pairs: list[tuple[bool, bool]]) -> tuple[int, int, float | None]:
    """Return how often only the first holds, how often only the second, and z for the first.

    z is (wins - losses) / sqrt(wins + losses), None without either.
    """
    wins = sum(a and not b for a, b in pairs)
    losses = sum(b and not a for a, b in pairs)
    different = wins + losses
    return wins, losses, (wins - losses) / math.sqrt(different) if different else None


def mean_z(differences: list[float]) -> float | None:
    """Return the mean over its standard error, None where that is not defined."""
    if len(differences) < 2 or not (spread := stdev(differences)):
        return None
    return fmean(differences) / (spread / math.sqrt(len(differences)))


def _read(path: Path) -> dict[str, Row]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["name"]: row for row in rows}


if __name__ == "__main__":
    main()
