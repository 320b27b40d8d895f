"""What further candidates cost and give: one, two and three at held-out places.

The places are those of `bench_offer.py`. Everything before the first token is done beforehand, so
the times are those of decoding: processor time, for a busy machine, with one thread. A place counts
as exact if the first line of a candidate, trimmed as the server does, is what stood there.

    python benchmarks/bench_candidates.py --threads 1 --places 60
    python benchmarks/compare.py OLD NEW bench_candidates -- --threads 1 --places 60
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import harness
from bench_offer import WINDOW, Place, places
from quality import fim_fetch

from keyturn.engine.engine import Engine
from keyturn.engine.generation.draft import DraftRecord
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import ColdLimit
from keyturn.engine.syntax.languages import language_of
from keyturn.engine.wire.config import Completion
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import asked, offered, others_offered

NUM_PLACES, COUNTS, DEPTHS = 60, (1, 2, 3), ("exact", "full")


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--places", type=int, default=NUM_PLACES)
    parser.add_argument("--repeats", type=int, default=3, help="of every number at every place")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    engine = Engine(replace(COMMAND_LINE, num_threads=args.threads).engine_config())
    records = {(depth, count): DraftRecord() for depth in DEPTHS for count in COUNTS}
    found: dict[tuple[str, int], list[tuple[float, list[str], str]]] = {at: [] for at in records}
    held_out = fim_fetch.held_out_files(args.cache)
    for number, place in enumerate(itertools.islice(places(held_out, args.seed), args.places)):
        for at, (ms, made) in measured(engine, args, place, records).items():
            found[at].append((ms, texts(made, place), place.truth))
        print(f"{number + 1} of {args.places}: {place.kind} in {place.path[-40:]}", flush=True)
    rows = [summarised(*at, some, found[at[0], 1]) for at, some in found.items()]
    harness.table(list(rows[0]), [list(row.values()) for row in rows])
    figures = {f"{row['depth']} ms of {row['candidates']}": row["ms"] for row in rows}
    harness.finish("candidates", args, {**figures, "num_places": args.places, "runs": rows}, [])


def measured(
    engine: Engine,
    args: argparse.Namespace,
    place: Place,
    records: dict[tuple[str, int], DraftRecord],
) -> dict[tuple[str, int], tuple[float, Completion]]:
    """Complete with every depth and number of candidates in turn; return the times in ms."""
    session = engine.open("several", place.text, path=place.path, model=args.model, policy="repair")
    session.cold_limit = ColdLimit(max_rows=WINDOW)
    params = asked(
        place.text,
        place.offset,
        COMMAND_LINE.completion_params(),
        language=language_of("", place.path),
    )
    session.complete(place.offset, replace(params, max_tokens=1), go_on)  # repairs
    past, turns = session.past, list(records)
    made: dict[tuple[str, int], Completion] = {}
    times: dict[tuple[str, int], list[float]] = {at: [] for at in turns}
    for number in range(args.repeats):
        for depth, count in turns[number % len(turns) :] + turns[: number % len(turns)]:
            session.past, session.drafts = copy.deepcopy(past), records[depth, count]
            wanted = replace(params, depth=depth, num_candidates=count)
            started_at = time.process_time()
            made[depth, count] = session.complete(place.offset, wanted, go_on)
            times[depth, count].append((time.process_time() - started_at) * 1e3)
    engine.close("several")
    return {at: (median(times[at]), made[at]) for at in turns}


def texts(made: Completion, place: Place) -> list[str]:
    """Return what is offered of a completion and its further candidates."""
    language = language_of("", place.path)
    first = offered(made, place.text, place.offset, language).text
    return [first, *others_offered(made, place.text, place.offset, language, first)]


def summarised(
    depth: str,
    count: int,
    found: list[tuple[float, list[str], str]],
    alone: list[tuple[float, list[str], str]],
) -> dict[str, Any]:
    """Return the figures of one number of candidates."""
    total, of_one = (sum(ms for ms, _, _ in some) for some in (found, alone))
    return {
        "depth": depth,
        "candidates": count,
        "ms": total / len(found),
        "times one's": total / of_one,
        "offered": sum(len(some) for _, some, _ in found) / len(found),
        **{f"exact in {most}": exact(found, most) for most in COUNTS},
    }


def exact(found: list[tuple[float, list[str], str]], most: int) -> float:
    """Return the share of places where one of the first candidates is exact."""
    return mean(any(is_exact(text, truth) for text in some[:most]) for _, some, truth in found)


def is_exact(text: str, truth: str) -> bool:
    """Whether the first lines are the same, white space at their ends aside."""
    first, wanted = (each.split("\n", 1)[0].rstrip() for each in (text, truth))
    return bool(first) and first == wanted


if __name__ == "__main__":
    main()
