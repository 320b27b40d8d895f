"""How soon a completion is ready after one edit, 1,000 tokens before the cursor, per policy.

A new line is inserted into a real file whose prompt has about 2,000 tokens; the policies take
turns, each on its own session. Ready is the patch, the repair and the first token. After each edit
a key is typed at the cursor and completed again, and held against one decode step. Two prefills
tell what the record of attention costs that repair ranks by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from statistics import median

import harness

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt import repair
from keyturn.engine.prompt.patched_cache import Counts
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.session import Session
from keyturn.server.settings import Settings

SOURCE = harness.ROOT / "examples" / "traces" / "starlette-datastructures.jsonl"
POLICIES = ("full", "prefix", "turn", "repair")
# As many rows as the figures of quality are for, whatever the machine makes of the budget.
BY_SHARE = "repair, a full share"
TYPING, DECODING = "repair, a key at the cursor", "repair, a decode step"
# Another one each time: what was there before would only be brought back.
LINE = "    value = convert(value, {})\n"
PREFILLED = ("turn", "repair")
ONE_TOKEN = Settings(max_tokens=1, time_budget_ms=0.0).completion_params()


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--context", type=int, default=2000, help="tokens of the prompt")
    parser.add_argument("--distance", type=int, default=1000, help="tokens from edit to cursor")
    args = parser.parse_args()
    # A window that holds the text whole, however many characters its tokens have.
    settings = Settings(num_threads=args.threads, window_tokens=2 * args.context, cold_budget_ms=0)
    engine = Engine(settings.engine_config())
    with SOURCE.open(encoding="utf-8") as file:
        text = json.loads(file.readline())["open"]["text"]
    starts = engine.load(args.model).tokenizer.encode(text).starts.tolist()
    num_prefix = args.context * 3 // 4
    text = text[: line_start(text, starts[args.context])]
    cursor = line_start(text, starts[num_prefix])
    edit_at = line_start(text, starts[num_prefix - args.distance])
    sessions: dict[str, Session] = {}
    counts: dict[str, Counts] = {}
    for name in (*POLICIES, BY_SHARE):
        policy = name.split(",")[0]
        session = engine.open(name, text, path=SOURCE.name, model=args.model, policy=policy)
        if name == BY_SHARE:
            session.repair_limit = repair.BY_SHARE
        session.set_cursor(cursor)
        session.sync(go_on)
        sessions[name] = session

    lines = {name: (LINE.format(number) for number in count(100)) for name in sessions}

    def ready_ms(policy: str) -> float:
        session, line = sessions[policy], next(lines[policy])
        session.prompt.take_counts()
        session.edit([(edit_at, edit_at, line)])
        start = time.perf_counter()
        session.sync(go_on)
        patched_ms = (time.perf_counter() - start) * 1e3
        completion = session.complete(cursor + len(line), ONE_TOKEN, go_on)
        counts[policy] = session.prompt.take_counts()
        return patched_ms + completion.ttft_ms

    def undone(policy: str) -> float:
        ready = ready_ms(policy)
        sessions[policy].edit([(edit_at, edit_at + len(LINE.format(100)), "")])
        sessions[policy].sync(go_on)
        return ready

    def typing_ms() -> float:
        session, at = sessions["repair"], cursor
        session.complete(at, ONE_TOKEN, go_on)  # whatever an edit before has left to do
        session.edit([(at, at, "x")])
        start = time.perf_counter()
        session.sync(go_on)
        patched_ms = (time.perf_counter() - start) * 1e3
        ready = patched_ms + session.complete(at + 1, ONE_TOKEN, go_on).ttft_ms
        session.edit([(at, at + 1, "")])
        session.complete(at, ONE_TOKEN, go_on)
        return ready

    def decoding_ms() -> float:
        prompt = sessions["repair"].prompt
        start = time.perf_counter()
        prompt.decode(int(prompt.token_ids[-1]), go_on)
        took = (time.perf_counter() - start) * 1e3
        prompt.drop_generated()
        return took

    def prefill_ms(policy: str) -> float:
        session = sessions[policy]
        session.drop_cache()
        start = time.perf_counter()
        session.sync(go_on)
        return (time.perf_counter() - start) * 1e3

    runs: dict[str, Callable[[], float]] = {
        name: (lambda name=name: undone(name)) for name in sessions
    }
    runs |= {TYPING: typing_ms, DECODING: decoding_ms}
    # Only under `repair` does a pass leave a record of what its rows leaned on.
    runs |= {f"{each}, a prefill": (lambda each=each: prefill_ms(each)) for each in PREFILLED}
    times = harness.alternate(runs, repeats=args.repeats, warm_up=2)
    ready = {policy: median(values) for policy, values in times.items()}
    tail = {policy: percentile(values, 0.95) for policy, values in times.items()}
    rows = []
    for name in runs:
        row: list[object] = [name, ready[name], tail[name], min(times[name]), max(times[name])]
        if (c := counts.get(name)) is not None:
            row += [c.num_wanted, c.num_kept, c.num_turned, c.num_repaired, c.num_recomputed]
        rows.append(row + [None] * (10 - len(row)))
    worked = ["tokens", "kept", "turned", "repaired", "recomputed"]
    harness.table(["policy", "ready ms p50", "p95", "min", "max", *worked], rows)
    figures = {
        "ready_ms": times,
        "ready_ms_p50": ready,
        "ready_ms_p95": tail,
        "counts": {p: asdict(c) for p, c in counts.items()},
        "dtype": engine.status()["dtype"],
    }
    checks = [
        harness.check("full / turn", ready["full"] / ready["turn"], "times", ">= 15"),
        harness.check("full / prefix", ready["full"] / ready["prefix"], "times", ">= 1"),
        harness.check("prefix / turn", ready["prefix"] / ready["turn"], "times", ">= 1"),
        harness.check("full / repair", ready["full"] / ready["repair"], "times", ">= 6"),
        harness.check(f"full / {BY_SHARE}", ready["full"] / ready[BY_SHARE], "times", ">= 6"),
        harness.check("repair, p95 / p50", (tail["repair"] or 0) / ready["repair"], "", "<= 3"),
        harness.check("a key / a decode step", ready[TYPING] / ready[DECODING], "", "<= 1.3"),
        harness.check(
            "a prefill with the record / without",
            ready["repair, a prefill"] / ready["turn, a prefill"],
            "",
            "<= 1.05",
        ),
    ]
    harness.finish("edit_latency", args, figures, checks)


def line_start(text: str, offset: int) -> int:
    """Return where the line at `offset` begins."""
    return text.rfind("\n", 0, offset) + 1


if __name__ == "__main__":
    main()
