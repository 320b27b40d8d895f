"""What `depth.py` measured, place by place: kept in files, pooled, and made into a table.

A run of many processes leaves a file of each: its first line is about the run, every other one is a
place. Pooled they give what one process would have given that had come to all of the places.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import harness
import numpy as np

GROUPS = ("single lines", "held-out", "after edits")
NUM_DRAWS = 2000


class Made(NamedTuple):
    """What one method gave at a place.

    Attributes:
        decode_ms: from the first decode step to the last.
        whole_ms: from the last key to the whole completion.
        num_tokens: of the completion.
        num_layers: mean per token.
        num_drafted: tokens, in all repeats.
        num_accepted: those of them that came true.
        similarity: to what stood there, 0 to 100; None if that is not known.
        is_equal: whether it is plain decoding's.
        is_excused: whether two logits that are nearly the same explain that it is not.
        different: otherwise, what it is instead; "" for a method that may differ.
    """

    decode_ms: float
    whole_ms: float
    num_tokens: int
    num_layers: float
    num_drafted: int
    num_accepted: int
    similarity: float | None
    is_equal: bool
    is_excused: bool = False
    different: str = ""


class Record(NamedTuple):
    """What all methods gave at a place: its group, its number there, and method to `Made`."""

    group: str
    number: int
    made: dict[str, Made]


Found = dict[str, dict[str, list[Made]]]  # by group and method, in the places' order


def write_line(path: Path, line: dict[str, Any]) -> None:
    """Append what a run is about, or a record, to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(paths: Iterable[Path]) -> tuple[dict[str, Any], list[Record]]:
    """Return what pooled runs are about and their records, in the order of one run.

    A last line that was not written to its end is passed over: its process was ended.

    Raises:
        SystemExit: a file is none of a run, they are of different runs, or share a place.
    """
    about: dict[str, Any] = {}
    records: dict[tuple[str, int], Record] = {}
    for path in paths:
        try:
            first, *others = path.read_text(encoding="utf-8").split("\n")[:-1]
            begun = json.loads(first)["about"]
            made = [Record(**json.loads(line)) for line in others]
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no file of --raw: {error}") from None
        about = about or begun
        if begun != about:
            unlike = [key for key in about | begun if about.get(key) != begun.get(key)]
            raise SystemExit(f"{path} is of another run: not the same {', '.join(unlike)}")
        for record in made:
            if (record.group, record.number) in records:
                raise SystemExit(f"{path} has a place again: {record.number} of {record.group}")
            by_name = {name: Made(*values) for name, values in record.made.items()}
            records[record.group, record.number] = record._replace(made=by_name)
    if not records:
        raise SystemExit("there is no record in these files")
    return about, [records[at] for at in sorted(records, key=lambda at: (at[1], at[0]))]


def report(about: dict[str, Any], records: Sequence[Record]) -> tuple[dict[str, Any], list[Any]]:
    """Print the table of all methods; return the figures and the checks."""
    found: Found = {group: {} for group in GROUPS}
    for record in records:
        for name, made in record.made.items():
            found[record.group].setdefault(name, []).append(made)
    seed = about["seed"]
    rows = [
        row_of(group, name, made, of_group["plain"], seed)
        for group, of_group in found.items()
        for name, made in of_group.items()
    ]
    harness.table(list(rows[0])[:-1], [list(row.values())[:-1] for row in rows])
    for row in rows:
        for text in row["different"]:
            print(f"{row['group']}, {row['method']}: {text}")
    held = checks(rows, found, about["device"])
    for name in about["fast"]:
        held += checks_of_fast(found, name, seed)
    return {**about, "runs": rows}, held


def row_of(
    group: str, name: str, found: list[Made], plain: list[Made], seed: int
) -> dict[str, Any]:
    """Return the figures of one method at the places of one kind."""
    decode_ms = [each.decode_ms for each in found]
    baseline_ms = [each.decode_ms for each in plain]
    low, high = interval(baseline_ms, decode_ms, seed)
    worst, best = change(similarities(plain), similarities(found), seed)
    num_tokens = sum(each.num_tokens for each in found)
    num_drafted = sum(each.num_drafted for each in found)
    all_ms = max(sum(decode_ms), 1e-9)
    return {
        "group": group,
        "method": name,
        "places": len(found),
        "tokens": num_tokens,
        "mean ms": mean(decode_ms),
        "median ms": median(decode_ms),
        "tokens/s": num_tokens / all_ms * 1e3,
        "times as fast": sum(baseline_ms) / all_ms,
        "low": low,
        "high": high,
        "accepted": sum(each.num_accepted for each in found) / num_drafted if num_drafted else None,
        "layers": mean(each.num_layers for each in found),
        "edit similarity": mean(similarities(found)) if similarities(found) else None,
        "change, low %": worst,
        "change, high %": best,
        "equal": sum(each.is_equal for each in found),
        "excused": sum(each.is_excused for each in found),
        "key to whole, median ms": median(each.whole_ms for each in found),
        "different": [each.different for each in found if each.different],
    }


def similarities(found: Iterable[Made]) -> list[float]:
    """Return those that are known."""
    return [each.similarity for each in found if each.similarity is not None]


def interval(plain: list[float], other: list[float], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of how many times as fast, by resampling places."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(plain), (NUM_DRAWS, len(plain)))
    sums = (np.array(each)[draws].sum(1) for each in (plain, other))
    ratios = next(sums) / np.maximum(next(sums), 1e-9)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


def change(plain: list[float], other: list[float], seed: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the change in mean similarity, in per cent of plain's, if any."""
    if not any(plain):
        return None, None
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(plain), (NUM_DRAWS, len(plain)))
    changes = 100 * (np.array(other) - np.array(plain))[draws].mean(1) / mean(plain)
    return float(np.quantile(changes, 0.025)), float(np.quantile(changes, 0.975))


def checks_of_fast(found: Found, name: str, seed: int) -> list[dict[str, Any]]:
    """Hold what is promised of `fast` against its targets, for one way to save.

    The baselines ran beside it.
    """
    groups = [of for of in found.values() if of]
    if any(each not in of for of in groups for each in ("exact", name)):
        return []
    plain, exact, fast = (
        [made for of in groups for made in of[each]] for each in ("plain", "exact", name)
    )
    layers = [
        sum(each.num_layers * each.num_tokens for each in some)
        / sum(each.num_tokens for each in some)
        for some in (plain, fast)
    ]
    whole = [sum(each.decode_ms for each in some) for some in (exact, fast)]
    known, other = similarities(plain), similarities(fast)
    worst, _ = change(known, other, seed)
    return [
        harness.check(f"{name}: places", len(known), "", ">= 1000"),
        harness.check(f"{name}: layers, of plain's", layers[1] / layers[0], "", "<= 0.75"),
        harness.check(f"{name}: time, of exact's", whole[1] / whole[0], "", "<= 0.85"),
        harness.check(f"{name}: change of edit similarity", worst, "%", ">= -1"),
    ]


def checks(rows: list[dict[str, Any]], found: Found, device: str) -> list[dict[str, Any]]:
    """Hold what is promised of `exact` against its targets."""
    exact = [row for row in rows if row["method"] == "exact"]
    if not exact:
        return []
    both = [[of["plain"], of["exact"]] for of in found.values() if of]
    plain_ms, exact_ms = (
        sum(each.decode_ms for pair in both for each in pair[at]) for at in (0, 1)
    )
    whole = [median([each.whole_ms for pair in both for each in pair[at]]) for at in (0, 1)]
    target = 1.4 if device.startswith("cuda") else 1.2
    num_same = sum(row["equal"] + row["excused"] for row in exact)
    return [
        harness.check("completions that are the same", num_same, "places", ">= 500"),
        harness.check(
            "completions that differ", sum(len(row["different"]) for row in exact), "", "<= 0"
        ),
        harness.check("times as fast as plain", plain_ms / exact_ms, "", f">= {target}"),
        *(
            harness.check(f"slower, {row['group']}", 1 / row["times as fast"], "times", "<= 1.03")
            for row in exact
        ),
        harness.check("key to whole, of plain's", whole[1] / whole[0], "", "<= 1"),
    ]
