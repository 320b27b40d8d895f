"""How soon a completion is ready after one edit, 1,000 tokens before the cursor, per policy.

A line is inserted into a real file whose prompt has about 2,000 tokens; the policies take turns,
each on its own session. Ready is the patch plus the first token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import harness

from keyturn.engine.engine import Engine
from keyturn.engine.prompt.prompt_cache import Counts
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.session import Session
from keyturn.server.settings import Settings

SOURCE = harness.ROOT / "examples" / "traces" / "starlette-datastructures.jsonl"
POLICIES = ("full", "prefix", "turn")
LINE = "    value = convert(value)\n"
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
    for policy in POLICIES:
        session = engine.open(policy, text, path=SOURCE.name, model=args.model, policy=policy)
        session.set_cursor(cursor)
        session.sync(go_on)
        sessions[policy] = session

    def ready_ms(policy: str) -> float:
        session = sessions[policy]
        session.prompt.take_counts()
        session.edit([(edit_at, edit_at, LINE)])
        start = time.perf_counter()
        session.sync(go_on)
        patched_ms = (time.perf_counter() - start) * 1e3
        completion = session.complete(cursor + len(LINE), ONE_TOKEN, go_on)
        counts[policy] = session.prompt.take_counts()
        session.edit([(edit_at, edit_at + len(LINE), "")])
        session.sync(go_on)
        return patched_ms + completion.ttft_ms

    runs: dict[str, Callable[[], float]] = {
        policy: (lambda policy=policy: ready_ms(policy)) for policy in POLICIES
    }
    times = harness.alternate(runs, repeats=args.repeats, warm_up=2)
    ready = {policy: median(values) for policy, values in times.items()}
    tail = {policy: percentile(values, 0.95) for policy, values in times.items()}
    harness.table(
        ["policy", "ready ms p50", "p95", "min", "max", "tokens", "kept", "turned", "recomputed"],
        [
            [p, ready[p], tail[p], min(times[p]), max(times[p]), c.num_wanted]
            + [c.num_kept, c.num_turned, c.num_recomputed]
            for p, c in counts.items()
        ],
    )
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
    ]
    harness.finish("edit_latency", args, figures, checks)


def line_start(text: str, offset: int) -> int:
    """Return where the line at `offset` begins."""
    return text.rfind("\n", 0, offset) + 1


def go_on() -> None:
    """Never cancel."""


if __name__ == "__main__":
    main()
