"""Whether healing delays completions: the same typing with it and without, by the real scheduler.

8 keys a second into a document of some 1,600 tokens, in bursts; a completion of one token is asked
for in every pause, 200 ms after the last key, and now and then a line far above comes or goes
before it. The delay is from asking to the answer. What healing costs is CPU time of all threads
while it runs, waste included.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import harness
from bench_edit_latency import LINE, SOURCE, line_start

from keyturn.engine.engine import Engine
from keyturn.engine.host.held_document import Job
from keyturn.engine.host.scheduler import Scheduler
from keyturn.engine.model.decoder import Check
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.session import Session
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.protocol import Request
from keyturn.server.settings import Settings

KEYS_PER_S, ASKED_AFTER_S = 8.0, 0.2
BURST, PAUSE_S = (8, 24), (0.8, 1.6)  # keys at once; from the last of them to the next
FAR_EVERY = 4  # bursts
HEALS = ("off", "worthwhile", "full")
TYPING, FAR = "typing", "edit far above"
_ANSWER_S = 60.0


class Event(NamedTuple):
    """A message to the scheduler: when it comes, in seconds, and for a completion after what."""

    at_s: float
    method: str
    params: dict[str, Any]
    after: str = ""


class Watched(Engine):
    """An engine whose sessions' healing is timed.

    Attributes:
        heal_cpu_s: CPU seconds of healing so far.
        opened: the sessions.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Start as any engine does."""
        super().__init__(config)
        self.heal_cpu_s = 0.0
        self.opened: list[Session] = []

    def open(
        self,
        key: Hashable,
        text: str,
        *,
        path: str,
        model: str,
        policy: str,
        layout: str | None = None,
    ) -> Session:
        """Open a document, and time what heals it."""
        session = super().open(key, text, path=path, model=model, policy=policy, layout=layout)
        heal = session.heal

        def timed(max_rows: int, check: Check) -> int:
            start = time.process_time()  # all threads; the only other one sleeps
            try:
                return heal(max_rows, check)
            finally:
                self.heal_cpu_s += time.process_time() - start

        session.heal = timed
        self.opened.append(session)
        return session


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="of typing, in each run")
    parser.add_argument("--context", type=int, default=1600, help="tokens of the document")
    parser.add_argument("--distance", type=int, default=1000, help="tokens, of the edits far above")
    parser.add_argument("--heals", nargs="+", choices=HEALS, default=list(HEALS))
    args = parser.parse_args()
    settings = Settings(
        num_threads=args.threads, model=args.model, max_tokens=1, time_budget_ms=0.0
    )
    text, cursor, above, typed = place(settings, args.context, args.distance)
    events = load(cursor, above, typed, args.seconds, args.seed, settings)
    delays: dict[tuple[str, str], list[float]] = {}
    costs: dict[str, list[dict[str, float]]] = {heal: [] for heal in args.heals}
    for number in range(args.rounds):
        for heal in args.heals:
            found, cost = run(replace(settings, heal=heal), text, cursor, events)
            for after, some in found.items():
                delays.setdefault((heal, after), []).extend(some)
            costs[heal].append(cost)
            print(f"round {number + 1}, {heal}: {cost}", flush=True)
    harness.table(
        ["healing", "completion after", "count", "delay ms p50", "p95", "max"],
        [
            [heal, after, len(some), *(percentile(some, at) for at in (0.5, 0.95, 1.0))]
            for (heal, after), some in delays.items()
        ],
    )
    per_hour = {heal: _per_hour(some) for heal, some in costs.items()}
    harness.table(
        ["healing", "rows an hour", "CPU s an hour"],
        [[heal, *(round(figure) for figure in some)] for heal, some in per_hour.items()],
    )
    figures = {
        "threads": args.threads,
        "context": args.context,
        "seconds": args.seconds,
        "policy": settings.policy,
        "runs": [
            {"heal": heal, "after": after, "delay_ms": some}
            for (heal, after), some in delays.items()
        ],
        "heal_rows_per_hour": {heal: some[0] for heal, some in per_hour.items()},
        "heal_cpu_s_per_hour": {heal: some[1] for heal, some in per_hour.items()},
        "costs": costs,
    }
    harness.finish("heal_load", args, figures, checks(delays))


def place(settings: Settings, context: int, distance: int) -> tuple[str, int, int, str]:
    """Return a text, the cursor at three quarters of it, where the edits above go, what to type.

    What is typed stood there.
    """
    with SOURCE.open(encoding="utf-8") as file:
        text = json.loads(file.readline())["open"]["text"]
    loaded = Engine(settings.engine_config()).load(settings.model)
    starts = loaded.tokenizer.encode(text).starts.tolist()
    at = context * 3 // 4
    if context >= len(starts) or distance >= at:
        raise SystemExit(
            f"--context {context} and --distance {distance}: the text has {len(starts)} tokens, "
            "and the edit must be below its top; choose less"
        )
    cursor, above = (line_start(text, starts[number]) for number in (at, at - distance))
    end = line_start(text, starts[context])
    # What is taken out to be typed is made up for by what follows.
    return text[:cursor] + text[end : end + end - cursor], cursor, above, text[cursor:end]


def load(
    cursor: int, above: int, typed: str, seconds: float, seed: int, settings: Settings
) -> list[Event]:
    """Return what a person does: bursts of keys, pauses, and the edits far above."""
    rng = random.Random(seed)
    found: list[Event] = []
    version, now, num_typed, is_in = 1, 0.5, 0, False

    def edit(start: int, end: int, text: str) -> None:
        nonlocal version
        edits = [[start, end, text]]
        found.append(Event(now, "edit", {"base": version, "version": version + 1, "edits": edits}))
        version += 1

    def ask(after: str) -> None:
        params = asdict(settings.completion_params())
        asked = {"version": version, "offset": cursor, "params": {**params, "stop": []}}
        asked |= {"invoked": False, "stream": False, "wait_ms": settings.cold_wait_ms}
        found.append(Event(now + ASKED_AFTER_S, "complete", asked, after))

    number = 0
    while now < seconds:
        number += 1
        for at in range(rng.randint(*BURST)):
            now += 1 / KEYS_PER_S if at else 0.0
            edit(cursor, cursor, typed[num_typed % len(typed)])
            num_typed, cursor = num_typed + 1, cursor + 1
        ask(TYPING)
        now += rng.uniform(*PAUSE_S)
        if number % FAR_EVERY == 0:
            end, inserted = (above + len(LINE), "") if is_in else (above, LINE)
            edit(above, end, inserted)
            cursor += len(inserted) - (end - above)
            is_in = not is_in
            ask(FAR)
            now += rng.uniform(*PAUSE_S)
    return found


def run(
    settings: Settings, text: str, cursor: int, events: list[Event]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Play the events once; return the delays in ms by what was before them, and what healing cost.

    Raises:
        RuntimeError: something was answered with an error, or with nothing.
    """
    engines: list[Watched] = []

    def make(config: EngineConfig) -> Watched:
        engines.append(Watched(config))
        return engines[-1]

    scheduler = Scheduler(make, lambda _: None, lambda: None, keep_s=0.0)
    put = _client(scheduler)
    try:
        scheduler.configure(settings.engine_config())
        put("load", {"model": settings.model, "adapter": settings.adapter})()
        about = {"path": SOURCE.stem, "text": text, "version": 1, "model": settings.model}
        about |= {"policy": settings.policy, "layout": settings.layout, "cursor": cursor}
        put("open", {**about, "visible": True})()
        put("warm", {"version": 1, "cursor": cursor, "whole": True})()
        _wait_until_idle(scheduler)
        (session,) = engines[0].opened
        rows_before, cpu_before = session.prompt.num_rows_healed, engines[0].heal_cpu_s
        waits: list[tuple[str, Callable[[], float]]] = []
        start = time.perf_counter()
        for event in events:
            time.sleep(max(0.0, start + event.at_s - time.perf_counter()))
            waits.append((event.after, put(event.method, event.params)))
        delays: dict[str, list[float]] = {TYPING: [], FAR: []}
        for after, wait in waits:
            delay_ms = wait()
            if after:
                delays[after].append(delay_ms)
        took_s = time.perf_counter() - start
        return delays, {
            "rows": float(session.prompt.num_rows_healed - rows_before),
            "cpu_s": engines[0].heal_cpu_s - cpu_before,
            "took_s": took_s,
        }
    finally:
        scheduler.stop(_ANSWER_S)


def _wait_until_idle(scheduler: Scheduler) -> None:
    """Wait until the window is whole and healed; a healing that never ends ends this, too."""
    deadline = time.monotonic() + _ANSWER_S
    while not scheduler.status()["is_idle"] and time.monotonic() < deadline:
        time.sleep(0.05)


def _client(scheduler: Scheduler) -> Callable[[str, dict[str, Any]], Callable[[], float]]:
    """Return what submits a job; what that returns waits for the answer and says its delay."""

    def put(method: str, params: dict[str, Any]) -> Callable[[], float]:
        answered = threading.Event()
        answers: list[tuple[object, float]] = []
        if method != "load":
            params = {"doc": SOURCE.stem, **params}
        start = time.perf_counter()

        def on_result(result: object) -> None:
            answers.append((result, (time.perf_counter() - start) * 1e3))
            answered.set()

        def wait() -> float:
            if not answered.wait(_ANSWER_S) or isinstance(answers[0][0], Exception):
                raise RuntimeError(f"{method}: {answers[0][0] if answers else 'no answer'}")
            return answers[0][1]

        scheduler.submit(Job("load", Request(0, method, params), on_result, lambda *_, **__: None))
        return wait

    return put


def checks(delays: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """Hold the tail of all completions with healing against the same without."""

    def tail(heal: str) -> float | None:
        found = [one for after in (TYPING, FAR) for one in delays.get((heal, after), [])]
        return percentile(found, 0.95)

    without = tail("off")
    found = []
    for heal in HEALS[1:]:
        if without is not None and (given := tail(heal)) is not None:
            name = f"completions delayed by healing ({heal}), p95"
            found.append(harness.check(name, given - without, "ms", "<= 30"))
    return found


def _per_hour(costs: list[dict[str, float]]) -> tuple[float, float]:
    hours = sum(cost["took_s"] for cost in costs) / 3600
    rows, cpu_s = (sum(cost[key] for cost in costs) for key in ("rows", "cpu_s"))
    return rows / hours, cpu_s / hours


if __name__ == "__main__":
    main()
