"""Which stale rows to compute again after an edit: rankings on the same caches, as many rows each.

For every trace with one completion: the cache is filled, patched by turning, and then, for every
ranking from the same state, a share of the prompt's rows is computed again; the next 32 tokens are
held against a full prefill's, and with --complete the greedy completion of 64 tokens too.

    python benchmarks/make_traces.py --sets FOLDER
    python benchmarks/bench_repair.py FOLDER --shares 0.06 0.09 0.12

Rows that another machine wrote with --rows are summed up here by --from-rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from quality.rankings import RANKINGS, Patched
from traces import elsewhere
from traces.dependent import change

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.placement import RECOMPUTED
from keyturn.engine.prompt.prompt_cache import PromptCache
from keyturn.engine.prompt.repair import BY_SHARE, SHARE, RepairLimit, disagreement
from keyturn.engine.replay.replay import NUM_SCORED, PARAMS
from keyturn.engine.replay.scoring import closeness
from keyturn.engine.replay.trace import Complete, Cursor, Edit, Trace, next_place, read_trace
from keyturn.engine.session import Session
from keyturn.server.settings import Settings


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("sets", type=Path, help="folder of folders of traces")
    parser.add_argument("--kinds", nargs="+", help="folders; default: all")
    parser.add_argument("--per-kind", type=int, default=50, help="traces of each at most")
    parser.add_argument("--rankings", nargs="*", default=list(RANKINGS), choices=list(RANKINGS))
    parser.add_argument(
        "--policies",
        nargs="*",
        default=[],
        choices=("repair", "turn", "prefix"),
        help="as shipped",
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[SHARE])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layout", choices=("spm", "psm"))
    parser.add_argument("--complete", action="store_true", help="compare greedy completions too")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="write every place's figures here, JSON lines")
    parser.add_argument("--from-rows", type=Path, help="measure nothing, sum this file up")
    parser.add_argument("--measured-on", help="with --from-rows: the machine that wrote them")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    args = parser.parse_args()
    rows = _read(args.from_rows) if args.from_rows else run(args)
    summary = summarised(rows, distances(args.sets))
    header = ["kind", "ranking", "share", "places", "KL", "top-1", "same", "ratio to ours", "rows"]
    harness.table(header, [[each[name] for name in _COLUMNS] for each in summary])
    about = {"dtype": args.dtype, "device": args.device, "measured_on": args.measured_on}
    harness.finish("repair", args, {**about, "runs": summary}, [])


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure as many traces of each kind as asked for."""
    kinds = args.kinds or sorted(path.name for path in args.sets.iterdir() if path.is_dir())
    work: list[tuple[str, Path]] = []
    for kind in kinds:
        traces = sorted((args.sets / kind).glob("*.jsonl"))
        random.Random(args.seed).shuffle(traces)
        work += [(kind, trace) for trace in traces[: args.per_kind]]
    if args.processes > 1:
        parts = [(args, work[number :: args.processes]) for number in range(args.processes)]
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            return [row for part in pool.starmap(measured, parts) for row in part]
    return measured(args, work)


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def distances(sets: Path) -> dict[tuple[str, str], int]:
    """Return how many characters lie between each trace's nearest edit and its cursor."""
    index = json.loads((sets / "index.json").read_text(encoding="utf-8"))
    return {(each["kind"], Path(each["file"]).stem): each["distance"] for each in index["traces"]}


# Characters from an edit to the cursor, 250 tokens of code.
_NEAR = 900
_COLUMNS = ("kind", "ranking", "share", "num_places", "kl_mean", "top1_agreement")
_COLUMNS += ("exact_match_full", "ratio_to_ours", "num_rows")


def measured(args: argparse.Namespace, work: list[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Return a row for every trace, ranking and share."""
    settings = Settings(
        num_threads=args.threads, dtype=args.dtype, device=args.device, cold_budget_ms=0
    )
    engine = Engine(settings.engine_config())
    rows: list[dict[str, Any]] = []
    for number, (kind, trace) in enumerate(work):
        with torch.inference_mode():
            for row in of_trace(engine, args, trace, number):
                rows.append({"kind": kind, "trace": trace.stem, **row})
                if args.rows is not None:  # what is done is not lost
                    with args.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
        if number % 10 == 9:
            print(f"{number + 1} of {len(work)}", flush=True)
    return rows


def of_trace(
    engine: Engine, args: argparse.Namespace, path: Path, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield each policy's and ranking's figures at the last completion of a trace."""
    trace = read_trace(path)
    session, at = played(engine, args, trace, "repair")
    full = opened(engine, "oracle", args, trace.path, session.text, "full")
    wanted = full.complete(at.offset, PARAMS, go_on)
    token_ids = list(wanted.token_ids)
    if at.reference is not None:
        token_ids = full.model.tokenizer.encode(full.forced_text + at.reference).token_ids.tolist()
    token_ids = token_ids[:NUM_SCORED] or [0]
    full.prompt.drop_generated()
    reference = full.prompt.score(token_ids, go_on)

    def figures(of: Session, **about: object) -> dict[str, Any]:
        near = closeness(reference, of.prompt.score(token_ids, go_on))
        row: dict[str, Any] = {"kl": _mean(near.kl), "top1": _mean(near.same_top1), **about}
        if args.complete:
            row["same"] = of.complete(at.offset, PARAMS, go_on).text == wanted.text
            of.prompt.drop_generated()
        return row

    prompt = session.prompt
    before = prompt.logits(go_on)
    edited = np.flatnonzero(provenances(prompt) == RECOMPUTED)  # what the patch computed
    num_wanted = prompt.num_tokens
    shares: dict[str, Any] = {"num_patched": len(edited) / num_wanted, "num_wanted": num_wanted}
    state = State.of(prompt)
    for name in args.policies:
        if name == "repair":
            num_rows = prompt.repair(BY_SHARE, go_on)
            moved = disagreement(before, prompt.logits(go_on))
            shares["num_rows"] = num_rows / num_wanted
            yield figures(session, ranking="repair", share=SHARE, probe=moved, **shares)
        else:
            other, _ = played(engine, args, trace, name, key="other")
            yield figures(other, ranking=name, share=SHARE, **shares | {"num_rows": 0.0})
            engine.close("other")
    session.repair_limit = RepairLimit(max_rows=0)  # the rankings choose
    for name in args.rankings:
        for share in args.shares if name not in ("turn", "run_of_32") else args.shares[:1]:
            state.restore(prompt)
            patched = Patched(prompt, full.prompt, edited, seed)
            chosen = RANKINGS[name](patched, math.ceil(share * num_wanted))
            prompt.recompute(chosen, go_on)
            shares["num_rows"] = len(chosen) / num_wanted
            yield figures(session, ranking=name, share=share, **shares)
    for key in ("measured", "oracle"):
        engine.close(key)


def played(
    engine: Engine, args: argparse.Namespace, trace: Trace, policy: str, key: str = "measured"
) -> tuple[Session, Complete]:
    """Return a session after a trace, patched for its last completion, and that."""
    session = opened(engine, key, args, trace.path, trace.text, policy)
    is_filled = False
    at: Complete | None = None

    def sync() -> None:
        nonlocal is_filled
        session.sync(go_on)
        if not is_filled:
            session.prompt.take_counts()
        is_filled = True

    for index, record in enumerate(trace.records):
        match record:
            case Edit():
                if not is_filled:
                    session.set_cursor(next_place(trace.records[index:]) or 0)
                    sync()
                session.edit(record.edits)
                sync()
            case Cursor() | Complete():
                session.set_cursor(record.offset)
                sync()
                at = record if isinstance(record, Complete) else at
            case _:
                pass
    assert at is not None, f"{trace.path}: nothing is completed"
    return session, at


def provenances(prompt: PromptCache) -> np.ndarray:
    """Return the provenance of the prompt's rows, in order of position."""
    rows = prompt.rows
    return rows.record("provenance")[rows.by_position()]


def opened(
    engine: Engine, key: str, args: argparse.Namespace, path: str, text: str, policy: str
) -> Session:
    """Open a document with the options."""
    return engine.open(key, text, path=path, model=args.model, policy=policy, layout=args.layout)


@dataclasses.dataclass
class State:
    """Rows of a cache, to begin with again."""

    storage: list[torch.Tensor]
    records: dict[str, Any]
    num_fresh: int

    NAMES = ("provenance", "standing", "seen", "leaned_on", "leaning", "debt", "attention")

    @staticmethod
    def of(prompt: PromptCache) -> State:
        """Copy the rows in use."""
        rows = prompt.rows
        storage = [part[:, :, : rows.num_rows].clone() for part in rows.storage]
        records = {name: rows.record(name).copy() for name in State.NAMES}
        return State(storage, records, rows.num_fresh)

    def restore(self, prompt: PromptCache) -> None:
        """Put the copy back."""
        rows = prompt.rows
        for part, saved in zip(rows.storage, self.storage, strict=True):
            part[:, :, : saved.shape[2]].copy_(saved)
        for name, saved in self.records.items():
            rows.record(name)[...] = saved
        rows.num_fresh = self.num_fresh
        rows.mark_changed()


def summarised(
    rows: list[dict[str, Any]], distance: dict[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """Return means by kind, ranking and share, and ratios to ours paired over places.

    Kinds are also taken together: what a completion depends on, edits elsewhere, near the cursor
    and far from it.
    """
    ours = {(r["kind"], r["trace"], r["share"]): r["kl"] for r in rows if r["ranking"] == "ours"}
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["kind"], row["ranking"], row["share"]].append(row)
        for family in _families(row, distance):
            groups[family, row["ranking"], row["share"]].append(row)
    found = []
    for (kind, ranking, share), some in groups.items():
        keys = [(row["kind"], row["trace"], share) for row in some]
        pairs = [(row["kl"], ours[key]) for row, key in zip(some, keys, strict=True) if key in ours]
        logs = [math.log((kl + 1e-7) / (own + 1e-7)) for kl, own in pairs]
        found.append(
            {
                "kind": kind,
                "ranking": ranking,
                "share": share,
                "num_places": len(some),
                "kl_mean": _mean([row["kl"] for row in some]),
                "top1_agreement": _mean([row["top1"] for row in some]),
                "exact_match_full": _mean([row["same"] for row in some if "same" in row]),
                "ratio_to_ours": math.exp(_mean(logs) or 0.0) if logs else None,
                "num_rows": _mean([row["num_rows"] + row["num_patched"] for row in some]),
            }
        )
    return found


def _families(row: dict[str, Any], distance: dict[tuple[str, str], int]) -> Iterator[str]:
    """Yield the names of all groups of kinds that a place is in."""
    for name, kinds in (("elsewhere", elsewhere.KINDS), ("dependent", change.KINDS)):
        if row["kind"] in kinds:
            yield name
            if far := distance.get((row["kind"], row["trace"])):
                yield f"{name}, {'under' if far < _NEAR else 'over'} 250 tokens"


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    main()
