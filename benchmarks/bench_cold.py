"""Held-out files just opened: the first answer in a narrow window, against the whole one's.

The places of `bench_just_opened.py`, in this process: for every width nothing is computed yet, a
session's first completion is timed to its first token, and its first line is held against the
removed one. Of the places where the whole window gives that line a narrow one is to give it too.
With --grow each narrow window is then grown without healing, and asked again.

    python benchmarks/bench_cold.py --widths 256 512
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import harness
from bench_just_opened import Place, chosen
from quality import fim_fetch

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import WHOLE, ColdLimit
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.session import Session
from keyturn.server.settings import COMMAND_LINE, with_values

NUM_FILES, WIDTHS = 24, (256, 384, 512, 768)
TARGET, FASTER = ">= 0.90", ">= 5"
# The width that the checks are of, as `ColdLimit` has it before any pass was timed.
CHECKED = 512

Row = dict[str, Any]


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--grow", action="store_true", help="ask again in the grown window")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    engine = Engine(with_values(COMMAND_LINE, num_threads=args.threads).engine_config())
    places = chosen(fim_fetch.held_out_files(args.cache), args.files, args.seed)
    widths: list[int | None] = [None, *args.widths]
    rows: dict[int | None, list[Row]] = {width: [] for width in widths}
    for number, place in enumerate(places, 1):
        for width in widths:
            rows[width].append(asked(engine, args.model, place, width, grows=args.grow))
        told = " ".join(f"{rows[w][-1]['ttft_ms']:.0f}{'*' * rows[w][-1]['exact']}" for w in widths)
        print(f"{number}/{len(places)} {place.path[-40:]}: ms {told}", flush=True)
    found = [summarised(width, rows[width], rows[None]) for width in widths]
    harness.table(list(found[0]), [list(each.values()) for each in found])
    checks = []
    for each in found:
        if each["width"] == CHECKED:
            name = f"first lines kept in a window of {CHECKED} tokens, of the whole one's exact"
            checks.append(harness.check(name, each["kept_share"], "", TARGET))
            name = f"first answer in a window of {CHECKED} tokens, sooner than the whole one's"
            checks.append(harness.check(name, each["times_sooner"], "x", FASTER))
    harness.finish("cold", args, {"num_places": len(places), "runs": found}, checks)


def asked(engine: Engine, model: str, place: Place, width: int | None, *, grows: bool) -> Row:
    """Return what the first completion of a newly opened file gives, and when."""
    session = engine.open("cold", place.text, path=place.path, model=model, policy="repair")
    session.cold_limit = WHOLE if width is None else ColdLimit(max_rows=width)
    lines = place.text.split("\n")
    offset = sum(len(line) + 1 for line in lines[: place.row]) + place.column
    row = _first_line(session, offset, place)
    if grows and session.is_narrow:
        begin = time.perf_counter()
        session.grow(go_on)
        row["grow_ms"] = (time.perf_counter() - begin) * 1e3
        row["grown_exact"] = _first_line(session, offset, place)["exact"]
    engine.close("cold")
    return row


def _first_line(session: Session, offset: int, place: Place) -> Row:
    params = COMMAND_LINE.completion_params(stop=("\n",))
    completion = session.complete(offset, params, go_on)
    return {
        "num_tokens": completion.num_prompt_tokens,
        "ttft_ms": completion.ttft_ms,
        "line": completion.text.strip(),
        "exact": completion.text.strip() == place.line,
    }


def summarised(width: int | None, rows: list[Row], whole: list[Row]) -> Row:
    """Return the figures of one width beside the whole window's at the same places.

    Args:
        width: tokens at most; None is the whole window.
        rows: of its answers.
        whole: of the whole window's, in the same order.
    """
    kept = [row["exact"] for row, full in zip(rows, whole, strict=True) if full["exact"]]
    times = [row["ttft_ms"] for row in rows]
    sooner = [full["ttft_ms"] / row["ttft_ms"] for row, full in zip(rows, whole, strict=True)]
    was_grown = any("grown_exact" in row for row in rows)
    grown = [
        row.get("grown_exact", row["exact"])
        for row, full in zip(rows, whole, strict=True)
        if full["exact"]
    ]
    return {
        "width": width,
        "tokens": median(row["num_tokens"] for row in rows),
        "ttft_ms_p50": median(times),
        "ttft_ms_p95": percentile(times, 0.95),
        "times_sooner": median(sooner),
        "num_exact": sum(row["exact"] for row in rows),
        "num_same": sum(a["line"] == b["line"] for a, b in zip(rows, whole, strict=True)),
        "kept_share": sum(kept) / len(kept) if kept else None,
        "kept_share_grown": sum(grown) / len(grown) if was_grown and grown else None,
    }


if __name__ == "__main__":
    main()
