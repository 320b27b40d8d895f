"""Ways to compute a completion's tokens side by side: how fast, and what becomes of the text.

At places of three kinds (HumanEval's single lines, held-out packages, after edits in traces) the
cache is made ready, the last key is typed, and every method completes in turn, several times over.
Each has a record of its own of what drafts were worth, and drafts from the same past texts. Where
it is known what stood at a place, what is written is held against it. Held-out packages are those
that the exits of `fast` were not trained on.

    python benchmarks/depth.py --data HumanEval-SingleLine*.jsonl.gz --held-out --traces FOLDER
    python benchmarks/depth.py --device cuda --dtype bfloat16 --data ... --traces ... --places 200

Where many cores are at hand, processes of one thread share the places, and their files are pooled:

    python benchmarks/depth.py --threads 1 --held-out --wider --places 1200 --part 3/24 --raw 3
    python benchmarks/depth.py --merge 1 2 3 ... --save
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import depth_records
import harness
from bench_just_opened import Place as WithoutLine
from bench_just_opened import chosen
from depth_methods import Method, methods
from depth_records import GROUPS, Made, Record
from quality import fim_fetch, fim_metrics
from quality.fim_tasks import read_human_eval

from keyturn.engine.engine import Engine
from keyturn.engine.exits import depth_file, skip_file
from keyturn.engine.loaded_model import Model
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import WHOLE
from keyturn.engine.replay.trace import Complete, Cursor, Edit, map_back, read_trace
from keyturn.engine.session import Session
from keyturn.engine.wire.config import Completion, CompletionParams
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import asked

# Two logits that are closer than this may change places when several rows are computed at once.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.13}
# The packages that the embedded model's exits were trained on.
TRAINED_ON = {"attrs", "anyio", "rich", "express", "fastify", "undici", "werkzeug"}


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


def main() -> None:
    """Run, or pool what others have run; print, and save if asked to."""
    args = options()
    if args.merge:
        about, records = depth_records.read(args.merge)
        args.seed, args.model = about["seed"], about["model"]
        args.commit = about.pop("commit")
        about["num_processes"] = len(args.merge)
    else:
        about, records = run(args)
        if not records:
            print("no place was measured")
            return
    figures, held = depth_records.report(about, records)
    harness.finish("depth", args, figures, held)


def options() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = harness.parser(__doc__ or "")
    add = parser.add_argument
    add("--places", type=int, default=100, help="of each kind")
    add("--repeats", type=int, default=3, help="of every method at every place")
    add("--data", type=Path, help="HumanEval's single lines, .jsonl.gz")
    add("--held-out", action="store_true", help="held-out packages")
    add("--wider", action="store_true", help="four times as many of them")
    add("--traces", type=Path, help="folder of evaluation sets, see make_traces.py")
    add("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    add("--drawn", type=Path, help=".jsonl.gz of the places: read; written first if not there")
    add("--part", type=harness.part_of, metavar="I/N", help="only every N-th place of each kind")
    add("--raw", type=Path, help="JSON lines of what every place gave; must not be there")
    add("--merge", type=Path, nargs="+", metavar="RAW", help="pool such files, and run nothing")
    add("--skips", type=Path, help="sets of `keyturn calibrate --skip --out`")
    add(
        "--exits", type=Path, nargs="+", default=[], help="of `keyturn calibrate --out`, beside own"
    )
    add("--confidence", default="any", help="the gate, as the setting")
    add("--methods", nargs="+", help="only these, besides plain")
    add("--seconds", type=float, help="no place is begun later")
    add(
        "--cpu-time",
        action="store_true",
        help="processor time of whole completions, for a busy machine; with --threads 1",
    )
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--commit", help="what runs here, where git cannot say it")
    args = parser.parse_args()
    if not (args.data or args.held_out or args.traces or args.drawn or args.merge):
        parser.error("no places: give --data, --held-out or --traces")
    if args.raw and args.raw.exists():
        parser.error(f"{args.raw} is there already")
    return args


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[Record]]:
    """Return what the run is about, and what every method gave at every place.

    Raises:
        SystemExit: a place cannot be drawn, or there is no such method.
    """
    drawn = places(args)
    settings = replace(COMMAND_LINE, num_threads=args.threads, device=args.device, dtype=args.dtype)
    engine = Engine(settings.engine_config())
    model = engine.load(args.model)
    warm(engine)
    if args.skips:
        sets = skip_file.load(args.skips, model.decoder)
        model = replace(model, skips={name: each.skipped for name, each in sets.items()})
    exits = {path.stem: depth_file.load(path, model.decoder) for path in args.exits}
    compared = methods(model, exits)
    if args.methods:
        if unknown := set(args.methods) - set(compared):
            names = ", ".join(compared)
            raise SystemExit(f"no method {', '.join(sorted(unknown))}; there are {names}")
        compared = {name: compared[name] for name in ("plain", *args.methods)}
    about = {
        "seed": args.seed,
        "model": args.model,
        "commit": args.commit or harness.commit(),
        "machine": harness.machine(),
        "versions": {"python": platform.python_version(), **harness.installed()},
        "device": str(engine.device),
        "dtype": str(engine.dtype),
        "threads": args.threads,
        "repeats": args.repeats,
        "confidence": args.confidence,
        "cpu_time": args.cpu_time,
        "fast": [name for name, each in compared.items() if each.depth == "fast"],
    }
    if args.raw:
        depth_records.write_line(args.raw, {"about": about})
    tolerance = TOLERANCE[about["dtype"].removeprefix("torch.")]
    records: list[Record] = []
    started_at = time.monotonic()
    for number, place in drawn:
        if args.seconds and time.monotonic() - started_at > args.seconds:
            print(f"{len(records)} places, and no more time")
            break
        made = measure(engine, args, place, model, compared, tolerance)
        records.append(Record(place.group, number, made))
        if args.raw:
            depth_records.write_line(args.raw, records[-1]._asdict())
        if len(records) % 10 == 0:
            print(f"{len(records)} places", flush=True)
    return about, records


def warm(engine: Engine) -> None:
    """Prepare what a host prepares while nothing is to be done."""
    while engine.warm():
        pass


def places(args: argparse.Namespace) -> list[tuple[int, Place]]:
    """Return places of all kinds by turns, each with a last key or edit that is still to be made.

    A place comes with its number in its group: of a part, every so many-th one is there.

    Raises:
        SystemExit: a package cannot be fetched.
    """
    if args.drawn and args.drawn.exists():
        with gzip.open(args.drawn, "rt", encoding="utf-8") as file:
            groups = itertools.groupby(map(read_place, file), lambda place: place.group)
            by_kind = [list(some) for _, some in groups]
    else:
        by_kind = [list(some) for some in draw(args)]
        if args.drawn:
            with gzip.open(args.drawn, "wt", encoding="utf-8") as file:
                for place in itertools.chain.from_iterable(by_kind):
                    file.write(json.dumps(place._asdict()) + "\n")
    part, num_parts = args.part or (1, 1)
    numbered = [list(enumerate(some[: args.places]))[part - 1 :: num_parts] for some in by_kind]
    return [each for some in itertools.zip_longest(*numbered) for each in some if each is not None]


def read_place(line: str) -> Place:
    """Read a place from JSON, which has no tuples."""
    place = Place(**json.loads(line))
    return place._replace(edits=[[(a, b, text) for a, b, text in some] for some in place.edits])


def draw(args: argparse.Namespace) -> Iterator[Iterator[Place]]:
    """Yield the places of each kind."""
    rng = random.Random(args.seed)
    if args.data:
        tasks = list(read_human_eval(args.data))
        yield (
            typed(GROUPS[0], task.path, task.prefix + task.suffix, len(task.prefix), task.middle)
            for task in rng.sample(tasks, min(args.places, len(tasks)))
        )
    if args.held_out:
        fetched = fim_fetch.held_out_files(args.cache, args.wider)
        files = [each for each in fetched if each[0] not in TRAINED_ON]
        yield map(held_out_place, chosen(files, args.places, args.seed))
    if args.traces:
        paths = sorted(args.traces.glob("*/*.jsonl"))
        rng.shuffle(paths)
        yield itertools.islice(filter(None, map(after_edits, paths)), args.places)


def held_out_place(place: WithoutLine) -> Place:
    """Return a place of a held-out file, its last character still to be typed."""
    lines = place.text.split("\n")
    offset = sum(len(line) + 1 for line in lines[: place.row]) + place.column
    return typed(GROUPS[1], place.path, place.text, offset, place.line)


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
    tolerance: float,
) -> dict[str, Made]:
    """Return what every method gives at one place, in turn, round after round."""
    session = engine.open("depth", place.text, path=place.path, model=args.model, policy="repair")
    session.cold_limit = WHOLE
    session.set_cursor(place.anchor)
    session.sync(go_on)
    warm(engine)
    started_at = time.perf_counter()
    for edits in place.edits:
        session.edit(edits)
    session.set_cursor(place.offset)
    session.sync(go_on)
    key_ms = (time.perf_counter() - started_at) * 1e3
    params = asked(session.text, place.offset, COMMAND_LINE.completion_params(), args.confidence)
    session.complete(place.offset, replace(params, max_tokens=1), go_on)  # repairs
    past, names = session.past, list(compared)
    before = {
        name: (each.record.num_drafted, each.record.num_accepted) for name, each in compared.items()
    }
    completions: dict[str, list[Completion]] = {name: [] for name in names}
    for number in range(args.repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            session.past, session.drafts = copy.deepcopy(past), compared[name].record
            session.model = replace(model, exits=compared[name].fast or model.exits)
            asked_for = replace(params, depth=compared[name].depth)
            started_at = time.process_time()
            one = session.complete(place.offset, asked_for, go_on)
            if args.cpu_time:
                total_ms = (time.process_time() - started_at) * 1e3
                one = replace(one, ttft_ms=0.0, total_ms=total_ms)
            completions[name].append(one)
    plain = completions["plain"][0]
    made: dict[str, Made] = {}
    for name, of_method in completions.items():
        method, one = compared[name], of_method[-1]
        found = Made(
            decode_ms=median(each.total_ms - each.ttft_ms for each in of_method),
            whole_ms=key_ms + median(each.total_ms for each in of_method),
            num_tokens=len(one.token_ids),
            num_layers=one.num_layers_run,
            num_drafted=method.record.num_drafted - before[name][0],
            num_accepted=method.record.num_accepted - before[name][1],
            similarity=None
            if place.middle is None
            else fim_metrics.edit_similarity(one.text, place.middle),
            is_equal=one.token_ids == plain.token_ids,
        )
        if method.depth in ("full", "exact"):
            found = compare(session, params, plain, one, found, tolerance)
        made[name] = found
    engine.close("depth")
    return made


def compare(
    session: Session,
    params: CompletionParams,
    plain: Completion,
    one: Completion,
    made: Made,
    tolerance: float,
) -> Made:
    """Note whether a completion is equal, excused by two logits that are near, or neither."""
    if one.token_ids == plain.token_ids and one.stop_reason == plain.stop_reason:
        return made
    pairs = zip([*plain.token_ids, -1], [*one.token_ids, -1], strict=False)
    at = next(at for at, (wanted, other) in enumerate(pairs) if wanted != other)
    logits = session.prompt.score([*plain.token_ids[:at], 0], go_on)[-1]
    first, second = logits.topk(2).values.tolist()
    if first - second < tolerance:
        return made._replace(is_equal=False, is_excused=True)
    text = f"{plain.text!r} is {one.text!r}, apart {first - second:.3g}"
    return made._replace(is_equal=False, different=text)


if __name__ == "__main__":
    main()
