"""Ways to compute a completion's tokens side by side: how fast, and what becomes of the text.

At places of three kinds (HumanEval's single lines, held-out packages, after edits in traces) the
cache is made ready, the last key is typed, and every method completes in turn, several times over.
Each has a record of its own of what drafts were worth, and drafts from the same past texts. Where
it is known what stood at a place, what is written is held against it. Held-out packages are those
that the exits of `fast` were not trained on.

    python benchmarks/depth.py --data HumanEval-SingleLine*.jsonl.gz --held-out --traces FOLDER
    python benchmarks/depth.py --device cuda --dtype bfloat16 --data ... --traces ... --places 200
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import harness
import numpy as np
from bench_just_opened import chosen
from quality import fim_fetch, fim_metrics
from quality.fim_tasks import read_human_eval

from keyturn.engine.engine import Engine
from keyturn.engine.exits import skip_file
from keyturn.engine.generation.skipping import Schedule, exit_depths, skip_decode
from keyturn.engine.generation.speculation import DraftRecord, OwnDrafts
from keyturn.engine.prompt.growing_window import WHOLE
from keyturn.engine.replay.trace import Complete, Cursor, Edit, map_back, read_trace
from keyturn.engine.session import Model, Session
from keyturn.engine.wire.config import Completion, CompletionParams
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import asked

GROUPS = ("single lines", "held-out", "after edits")
# Two logits that are closer than this may change places when several rows are computed at once.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.13}
NUM_DRAWS = 2000
# The packages that the embedded model's exits were trained on.
TRAINED_ON = {"attrs", "anyio", "rich", "express", "fastify", "undici", "werkzeug"}


class Method(NamedTuple):
    """One way to compute tokens.

    Attributes:
        depth: that is asked for.
        record: how the record of drafts begins.
        fast: what "fast" saves by; None: what the model has.
    """

    depth: str
    record: DraftRecord
    fast: Callable[[int], bytes] | None = None


def methods(model: Model) -> dict[str, Method]:
    """Return what is compared, the baseline first; each with a record of its own."""
    num_layers = model.decoder.config.num_layers

    def layers(of_thirty: int) -> int:
        return max(1, round(num_layers * of_thirty / 30))

    def drafted_by(*sources: str) -> DraftRecord:
        return DraftRecord(sources=frozenset(sources))

    # Whatever it gains: otherwise it would be left out where it gains nothing.
    whatever = OwnDrafts(gain=math.inf)
    compared = {
        "plain": Method("full", DraftRecord()),
        "lookup": Method("exact", drafted_by("lookup")),
        "first layers": Method("exact", replace(drafted_by("exits"), exits=whatever)),
        "exact": Method("exact", drafted_by("lookup", "exits")),
        "fast": Method("fast", DraftRecord()),
        # Which layers a token is not put through depends on its number alone.
        "falling exits": Method(
            *("fast", DraftRecord(), exit_depths(num_layers, {0: num_layers, 4: layers(22)})),
        ),
        "one exit": Method(*("fast", DraftRecord(), exit_depths(num_layers, {0: layers(22)}))),
        "SkipDecode": Method(
            *("fast", DraftRecord()),
            skip_decode(num_layers, warm_up=layers(6), least=layers(26), over=16),
        ),
    }
    if model.skips:
        # The same set for all languages.
        fixed = Schedule(((0, next(iter(model.skips.values()))),))
        compared |= {
            "skip set": Method("exact", replace(drafted_by("skips"), skips=replace(whatever))),
            "exact, skip set too": Method("exact", DraftRecord()),
            "fast by skip set": Method("fast", DraftRecord(), fixed),
        }
    for name, each in list(compared.items()):
        if each.depth == "fast":
            compared[f"{name} without drafts"] = each._replace(record=drafted_by())
    return compared


class Place(NamedTuple):
    """Where a completion is asked for: a text, what is done to it, and the cursor then.

    `middle` is what stood there, if that is known.
    """

    group: str
    path: str
    text: str
    edits: list[list[tuple[int, int, str]]]
    anchor: int
    offset: int
    middle: str | None = None


@dataclass
class Measured:
    """What one method gave, place by place."""

    decode_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_layers: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    num_equal: int = 0
    num_excused: int = 0
    different: list[str] = field(default_factory=list)


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--places", type=int, default=100, help="of each kind")
    parser.add_argument("--repeats", type=int, default=3, help="of every method at every place")
    parser.add_argument("--data", type=Path, help="HumanEval's single lines, .jsonl.gz")
    parser.add_argument("--held-out", action="store_true", help="held-out packages")
    parser.add_argument("--traces", type=Path, help="folder of evaluation sets, see make_traces.py")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--skips", type=Path, help="sets of `keyturn calibrate --skip --out`")
    parser.add_argument("--confidence", default="any", help="the gate, as the setting")
    parser.add_argument("--methods", nargs="+", help="only these, besides plain")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of whole completions, for a busy machine; with --threads 1",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    if not (args.data or args.held_out or args.traces):
        parser.error("no places: give --data, --held-out or --traces")
    settings = replace(COMMAND_LINE, num_threads=args.threads, device=args.device, dtype=args.dtype)
    engine = Engine(settings.engine_config())
    model = engine.load(args.model)
    if args.skips:
        sets = skip_file.load(args.skips, model.decoder)
        model = replace(model, skips={name: each.skipped for name, each in sets.items()})
    compared = methods(model)
    if args.methods:
        compared = {name: compared[name] for name in ("plain", *args.methods)}
    tolerance = TOLERANCE[str(engine.dtype).removeprefix("torch.")]
    found = {group: {name: Measured() for name in compared} for group in GROUPS}
    for number, place in enumerate(places(args)):
        measure(engine, args, place, model, compared, found[place.group], tolerance)
        if number % 10 == 9:
            print(f"{number + 1} places", flush=True)
    rows = [
        row_of(group, name, measured, of_group["plain"], compared[name].record, args.seed)
        for group, of_group in found.items()
        for name, measured in of_group.items()
        if measured.num_tokens
    ]
    harness.table(list(rows[0])[:-1], [list(row.values())[:-1] for row in rows])
    for row in rows:
        for text in row["different"]:
            print(f"{row['group']}, {row['method']}: {text}")
    figures = {"device": str(engine.device), "dtype": str(engine.dtype), "runs": rows}
    held = checks(rows, found, engine.device.type) + checks_of_fast(found, args.seed)
    harness.finish("depth", args, figures, held)


def places(args: argparse.Namespace) -> Iterator[Place]:
    """Yield the places of all kinds, each with a last key or edit that is still to be made."""
    rng = random.Random(args.seed)
    if args.data:
        tasks = list(read_human_eval(args.data))
        for task in rng.sample(tasks, min(args.places, len(tasks))):
            text = task.prefix + task.suffix
            yield typed(GROUPS[0], task.path, text, len(task.prefix), task.middle)
    held_out = fim_fetch.held_out_files(args.cache) if args.held_out else []
    files = [each for each in held_out if each[0] not in TRAINED_ON]
    for place in chosen(files, args.places, args.seed):
        lines = place.text.split("\n")
        offset = sum(len(line) + 1 for line in lines[: place.row]) + place.column
        yield typed(GROUPS[1], place.path, place.text, offset, place.line)
    if args.traces:
        paths = sorted(args.traces.glob("*/*.jsonl"))
        rng.shuffle(paths)
        edited = filter(None, map(after_edits, paths))
        for _, place in zip(range(args.places), edited, strict=False):
            yield place


def typed(group: str, path: str, text: str, offset: int, middle: str) -> Place:
    """Return a place whose last character before the cursor is typed last."""
    last = max(0, offset - 1)
    before = text[:last] + text[offset:]
    return Place(group, path, before, [[(last, last, text[last:offset])]], last, offset, middle)


def after_edits(path: Path) -> Place | None:
    """Return the first completion of a trace that comes after edits; None if there is none."""
    trace = read_trace(path)
    edits: list[list[tuple[int, int, str]]] = []
    anchor = None
    for record in trace.records:
        if isinstance(record, Cursor) and not edits:
            anchor = record.offset
        elif isinstance(record, Edit):
            edits.append(list(record.edits))
        elif isinstance(record, Complete):
            if not edits:
                return None
            if anchor is None:
                anchor = record.offset
                for done in reversed(edits):
                    anchor = map_back(anchor, tuple(done))
            return Place(GROUPS[2], trace.path, trace.text, edits, anchor, record.offset)
    return None


def measure(
    engine: Engine,
    args: argparse.Namespace,
    place: Place,
    model: Model,
    compared: dict[str, Method],
    found: dict[str, Measured],
    tolerance: float,
) -> None:
    """Complete at one place with every method in turn, round after round."""
    session = engine.open("depth", place.text, path=place.path, model=args.model, policy="repair")
    session.cold_limit = WHOLE
    session.set_cursor(place.anchor)
    session.sync(_go_on)
    started_at = time.perf_counter()
    for edits in place.edits:
        session.edit(edits)
    session.set_cursor(place.offset)
    session.sync(_go_on)
    key_ms = (time.perf_counter() - started_at) * 1e3
    params = asked(session.text, place.offset, COMMAND_LINE.completion_params(), args.confidence)
    session.complete(place.offset, replace(params, max_tokens=1), _go_on)  # repairs
    past, names = session.past, list(compared)
    made: dict[str, list[Completion]] = {name: [] for name in names}
    for number in range(args.repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            session.past, session.drafts = copy.deepcopy(past), compared[name].record
            session.model = replace(model, exits=compared[name].fast or model.exits)
            asked_for = replace(params, depth=compared[name].depth)
            started_at = time.process_time()
            one = session.complete(place.offset, asked_for, _go_on)
            if args.cpu_time:
                total_ms = (time.process_time() - started_at) * 1e3
                one = replace(one, ttft_ms=0.0, total_ms=total_ms)
            made[name].append(one)
    plain = made["plain"][0]
    for name, completions in made.items():
        of_method, one = found[name], completions[-1]
        of_method.decode_ms.append(median(each.total_ms - each.ttft_ms for each in completions))
        of_method.whole_ms.append(key_ms + median(each.total_ms for each in completions))
        of_method.num_tokens.append(len(one.token_ids))
        of_method.num_layers.append(one.num_layers_run)
        if place.middle is not None:
            of_method.similarity.append(fim_metrics.edit_similarity(one.text, place.middle))
        if compared[name].depth in ("full", "exact"):
            compare(session, params, plain, one, of_method, tolerance)
        else:
            of_method.num_equal += one.token_ids == plain.token_ids
    engine.close("depth")


def compare(
    session: Session,
    params: CompletionParams,
    plain: Completion,
    one: Completion,
    found: Measured,
    tolerance: float,
) -> None:
    """Count a completion as equal, as excused by two logits that are nearly the same, or not."""
    if one.token_ids == plain.token_ids and one.stop_reason == plain.stop_reason:
        found.num_equal += 1
        return
    pairs = zip([*plain.token_ids, -1], [*one.token_ids, -1], strict=False)
    at = next(at for at, (wanted, other) in enumerate(pairs) if wanted != other)
    logits = session.prompt.score([*plain.token_ids[:at], 0], _go_on)[-1]
    first, second = logits.topk(2).values.tolist()
    if first - second < tolerance:
        found.num_excused += 1
    else:
        found.different.append(f"{plain.text!r} is {one.text!r}, apart {first - second:.3g}")


def row_of(
    group: str, name: str, found: Measured, plain: Measured, record: DraftRecord, seed: int
) -> dict[str, Any]:
    """Return the figures of one method at the places of one kind."""
    low, high = interval(plain.decode_ms, found.decode_ms, seed)
    worst, best = change(plain.similarity, found.similarity, seed)
    return {
        "group": group,
        "method": name,
        "places": len(found.num_tokens),
        "tokens": sum(found.num_tokens),
        "mean ms": mean(found.decode_ms),
        "median ms": median(found.decode_ms),
        "tokens/s": sum(found.num_tokens) / max(sum(found.decode_ms), 1e-9) * 1e3,
        "times as fast": sum(plain.decode_ms) / max(sum(found.decode_ms), 1e-9),
        "low": low,
        "high": high,
        # Over all kinds of places.
        "accepted": record.num_accepted / record.num_drafted if record.num_drafted else None,
        "layers": mean(found.num_layers),
        "edit similarity": mean(found.similarity) if found.similarity else None,
        "change, low %": worst,
        "change, high %": best,
        "equal": found.num_equal,
        "excused": found.num_excused,
        "key to whole, median ms": median(found.whole_ms),
        "different": found.different,
    }


def interval(plain: list[float], other: list[float], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of how many times as fast, by resampling places."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(plain), (NUM_DRAWS, len(plain)))
    sums = (np.array(each)[draws].sum(1) for each in (plain, other))
    ratios = next(sums) / np.maximum(next(sums), 1e-9)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


def change(plain: list[float], other: list[float], seed: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the change in mean similarity, in per cent of plain's."""
    if not plain:
        return None, None
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(plain), (NUM_DRAWS, len(plain)))
    changes = 100 * (np.array(other) - np.array(plain))[draws].mean(1) / mean(plain)
    return float(np.quantile(changes, 0.025)), float(np.quantile(changes, 0.975))


def checks_of_fast(found: dict[str, dict[str, Measured]], seed: int) -> list[dict[str, Any]]:
    """Hold what is promised of `fast` against its targets; the baselines ran beside it."""
    groups = [of for of in found.values() if of["plain"].num_tokens]
    if any(name not in of for of in groups for name in ("exact", "fast")):
        return []
    plain, exact, fast = ([of[name] for of in groups] for name in ("plain", "exact", "fast"))
    layers = [
        sum(float(np.dot(of.num_layers, of.num_tokens)) for of in some)
        / sum(sum(of.num_tokens) for of in some)
        for some in (plain, fast)
    ]
    whole = [sum(sum(of.decode_ms) for of in some) for some in (exact, fast)]
    known, other = ([each for of in some for each in of.similarity] for some in (plain, fast))
    worst, _ = change(known, other, seed)
    return [
        harness.check("fast: places", len(known), "", ">= 1000"),
        harness.check("fast: layers, of plain's", layers[1] / layers[0], "", "<= 0.75"),
        harness.check("fast: time, of exact's", whole[1] / whole[0], "", "<= 0.85"),
        harness.check("fast: change of edit similarity", worst, "%", ">= -1"),
    ]


def checks(
    rows: list[dict[str, Any]], found: dict[str, dict[str, Measured]], device: str
) -> list[dict[str, Any]]:
    """Hold what is promised of `exact` against its targets."""
    exact = [row for row in rows if row["method"] == "exact"]
    if not exact:
        return []
    both = [[of["plain"], of["exact"]] for of in found.values() if of["plain"].num_tokens]
    plain_ms, exact_ms = (sum(sum(pair[at].decode_ms) for pair in both) for at in (0, 1))
    whole = [median([ms for pair in both for ms in pair[at].whole_ms]) for at in (0, 1)]
    target = 1.4 if device == "cuda" else 1.2
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


def _go_on() -> None:
    """Never cancel."""


if __name__ == "__main__":
    main()
