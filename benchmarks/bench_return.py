"""How soon a completion is ready, and how many rows that takes, when text or cursor returns.

In a real file whose prompt has about 2,000 tokens 20 lines are deleted and come back, are cut and
pasted elsewhere, are moved in one edit; the cursor goes 200 lines away and comes back; and the
whole file is replaced by what a formatter would make of it. The policies take turns, each on its
own session and from a cache that was just prefilled. Ready is the patch, with repair where there is
any, plus the first token; closeness is that token's distribution against a full prefill.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import harness
from bench_edit_latency import ONE_TOKEN, SOURCE, line_start
from torch import Tensor

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import WHOLE
from keyturn.engine.prompt.repair import disagreement
from keyturn.engine.session import Session
from keyturn.server.settings import Settings

POLICIES = ("prefix", "turn", "repair")
Found = dict[str, dict[str, float]]
LINES, FAR_LINES = 20, 200


class Kind(NamedTuple):
    """What happens: texts and cursors one after another; the last is timed."""

    name: str
    steps: list[tuple[str, int]]


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=2000, help="tokens of the prompt")
    args = parser.parse_args()
    settings = Settings(num_threads=args.threads, window_tokens=2 * args.context)
    engine = Engine(settings.engine_config())
    with SOURCE.open(encoding="utf-8") as file:
        text = json.loads(file.readline())["open"]["text"]
    starts = engine.load(args.model).tokenizer.encode(text).starts.tolist()
    text = text[: line_start(text, starts[args.context])]
    sessions = {
        policy: engine.open(policy, text, path=SOURCE.name, model=args.model, policy=policy)
        for policy in ("full", *POLICIES)
    }
    figures: dict[str, dict[str, object]] = {}
    rows: list[list[object]] = []
    checks = []
    expected: dict[str, Tensor] = {}
    for session in sessions.values():
        session.cold_limit = WHOLE  # what is computed is to be what has changed
    for kind in kinds(text):
        expected[kind.name] = first_logits(sessions["full"], *kind.steps[-1])
        found: Found = {}

        def ready_ms(policy: str, kind: Kind = kind, found: Found = found) -> float:
            session = sessions[policy]
            session.drop_cache()
            for step in kind.steps[:-1]:
                complete(session, *step)
            session.prompt.take_counts()
            before = session.prompt.num_rows_forwarded
            ready = complete(session, *kind.steps[-1])
            counts = session.prompt.take_counts()
            found[policy] = {
                "num_wanted": counts.num_wanted,
                "num_turned": counts.num_turned,
                "num_repaired": counts.num_repaired,
                "num_rows_forwarded": session.prompt.num_rows_forwarded - before,
                "kl": disagreement(session.prompt.logits(go_on), expected[kind.name]),
            }
            return ready

        runs: dict[str, Callable[[], float]] = {
            policy: (lambda policy=policy: ready_ms(policy)) for policy in POLICIES
        }
        times = harness.alternate(runs, repeats=args.repeats, warm_up=0)
        rows += [
            [f"{kind.name}, {policy}", median(times[policy]), max(times[policy])]
            + [*found[policy].values()]
            for policy in POLICIES
        ]
        figures[kind.name] = {
            policy: {"ready_ms": times[policy], **found[policy]} for policy in POLICIES
        }
        ratio = median(times["prefix"]) / median(times["repair"])
        # A formatter changes a token in ten: those, and what is short between them, are computed.
        checks.append(harness.check(f"{kind.name}: prefix / repair", ratio, "times", ">= 5"))
    header = ["what returns, policy", "ready ms p50", "max", "tokens", "turned", "repaired"]
    harness.table([*header, "computed", "KL"], rows)
    figures_of_run = {"kinds": figures, "dtype": engine.status()["dtype"]}
    harness.finish("return", args, figures_of_run, checks)


def kinds(text: str) -> list[Kind]:
    """Return what happens to a text."""
    lines = text.splitlines(keepends=True)
    cursor = len("".join(lines[: len(lines) * 3 // 4]))
    first = len(lines) // 4
    cut = lines[first : first + LINES]
    without = "".join([*lines[:first], *lines[first + LINES :]])
    goes_to = first + 3 * LINES // 2  # in what is left
    rest = without.splitlines(keepends=True)
    pasted = "".join([*rest[:goes_to], *cut, *rest[goes_to:]])
    formatted = as_a_formatter_would(text[:cursor])
    near = len("".join(lines[:10]))
    far = len("".join(lines[: 10 + FAR_LINES]))
    start, removed = (text, cursor), (without, cursor - len("".join(cut)))
    return [
        Kind(f"undo of {LINES} lines deleted", [start, removed, start]),
        Kind(f"redo of {LINES} lines deleted", [start, removed, start, removed]),
        Kind(f"paste of {LINES} lines", [start, removed, (pasted, cursor)]),
        Kind(f"{LINES} lines moved at once", [start, (pasted, cursor)]),
        Kind(f"return over {FAR_LINES} lines", [(text, near), (text, far), (text, near)]),
        Kind("formatter", [start, (formatted + text[cursor:], len(formatted))]),
    ]


def as_a_formatter_would(text: str) -> str:
    """Return a text with other quotes, and long signatures and conditions wrapped."""
    text = re.sub(r'(?<!")"([^"\n]*)"(?!")', r"'\1'", text)
    text = re.sub(
        r"\(self, (\w.*)\)( -> .*)?:\n", r"(\n        self,\n        \1,\n    )\2:\n", text
    )
    return re.sub(r"\bif (.{50,}):\n", r"if (\n            \1\n        ):\n", text)


def complete(session: Session, text: str, cursor: int) -> float:
    """Replace the text, move the cursor, complete; return the milliseconds to the first token."""
    session.set_text(text)
    session.set_cursor(cursor)
    start = time.perf_counter()
    session.sync(go_on)
    patched_ms = (time.perf_counter() - start) * 1e3
    return patched_ms + session.complete(cursor, ONE_TOKEN, go_on).ttft_ms


def first_logits(session: Session, text: str, cursor: int) -> Tensor:
    """Return the logits of a completion's first token."""
    complete(session, text, cursor)
    return session.prompt.logits(go_on)


if __name__ == "__main__":
    main()
