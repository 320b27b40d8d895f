"""An hour of editing, accelerated: thousands of edits of every kind, then memory and exactness.

Typing, deletions, undo, cut and paste, a function moved, a formatter's pass over the file and jumps
of the cursor, with completions and idle healing between them, in a small window so that it ends in
minutes. At the end the healed cache is held against a full prefill.
"""

from __future__ import annotations

import random
import re
import resource
import time
from collections import Counter
from pathlib import Path

import harness

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.replay.scoring import closeness
from keyturn.engine.session import Session
from keyturn.server.settings import Settings

SOURCE = harness.ROOT / "engine" / "host" / "scheduler.py"
FEW_TOKENS = Settings(max_tokens=4, time_budget_ms=0.0).completion_params()
# In logits, float32: sums in another order for other chunks of rows. 1.3e-5 were seen.
TOLERANCE = 1e-4
_WARM_UP = 500  # edits before memory is looked at first


class Hour:
    """A document that is edited at random.

    Attributes:
        counts: edits of every kind so far.
    """

    def __init__(self, session: Session, seed: int) -> None:
        """Begin in the middle of the text."""
        self.counts: Counter[str] = Counter()
        self._session, self._random = session, random.Random(seed)
        self._original = session.text
        self._cursor = len(session.text) // 2
        self._before: list[str] = []
        self._clipboard = ""

    def step(self) -> None:
        """Do one edit, and now and then a completion, an idle moment or a jump."""
        kinds = ("type", "delete", "undo", "cut", "paste", "move", "format", "elsewhere")
        (kind,) = self._random.choices(kinds, (60, 12, 8, 4, 4, 2, 1, 9))
        before = self._session.text
        getattr(self, f"_{kind}")()
        if len(self._session.text) > 2 * len(self._original):
            self._session.set_text(self._original)  # nobody pastes for ever
        self.counts[kind] += 1
        self._before = [*self._before[-20:], before]
        self._cursor = min(self._cursor, len(self._session.text))
        if self._random.random() < 0.02:
            self._cursor = self._random.randrange(len(self._session.text) + 1)
            self.counts["jump"] += 1
        if self._random.random() < 0.25:
            self._session.complete(self._cursor, FEW_TOKENS, go_on)
            self.counts["completion"] += 1
        if self._random.random() < 0.05:
            self._session.heal(64, go_on)

    @property
    def cursor(self) -> int:
        """Where the next key goes."""
        return self._cursor

    def _edit(self, start: int, end: int, text: str) -> None:
        self._session.edit([(start, end, text)])

    def _lines(self, count: int) -> tuple[int, int]:
        """Return where some whole lines begin and end."""
        starts = [0, *(match.end() for match in re.finditer("\n", self._session.text))]
        first = self._random.randrange(len(starts))
        ends = [*starts, len(self._session.text)]
        return starts[first], ends[min(first + count, len(ends) - 1)]

    def _type(self) -> None:
        text = self._random.choice(["x", "name", " = ", "\n", "é", "😀", "()", "return value\n"])
        self._edit(self._cursor, self._cursor, text)
        self._cursor += len(text)

    def _delete(self) -> None:
        start = max(0, self._cursor - self._random.randint(1, 12))
        self._edit(start, self._cursor, "")
        self._cursor = start

    def _undo(self) -> None:
        if self._before:
            self._session.set_text(self._before.pop())

    def _cut(self) -> None:
        start, end = self._lines(self._random.randint(1, 20))
        self._clipboard = self._session.text[start:end]
        self._edit(start, end, "")

    def _paste(self) -> None:
        start, _ = self._lines(1)
        self._edit(start, start, self._clipboard)

    def _move(self) -> None:
        self._cut()
        self._paste()

    def _format(self) -> None:
        text = self._session.text
        old, new = ("'", '"') if "'" in text else ('"', "'")
        self._session.set_text(text.replace(old, new).replace("\t", "    "))

    def _elsewhere(self) -> None:
        start, end = self._lines(1)
        self._edit(start, end, "value = compute(other)\n" if self._random.random() < 0.5 else "")


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--edits", type=int, default=5000)
    parser.add_argument("--window", type=int, default=256, help="tokens")
    parser.add_argument("--file", type=Path, default=SOURCE)
    args = parser.parse_args()
    settings = Settings(
        num_threads=args.threads, window_tokens=args.window, heal="full", dtype="float32"
    )
    engine = Engine(settings.engine_config())
    text = args.file.read_text(encoding="utf-8")
    session = engine.open("a", text, path=args.file.name, model=args.model, policy="repair")
    session.set_cursor(len(text) // 2)
    hour = Hour(session, args.seed)
    started_at, warm_kib = time.perf_counter(), 0
    for number in range(args.edits):
        hour.step()
        if number == min(_WARM_UP, args.edits // 2):
            warm_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if number % 500 == 499:
            took = time.perf_counter() - started_at
            print(f"{number + 1} of {args.edits} edits, {took:.0f} s", flush=True)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - warm_kib) / 1024
    session.set_cursor(hour.cursor)
    session.grow(go_on)
    while session.heal(10_000, go_on):
        pass
    fresh = engine.open("b", session.text, path=args.file.name, model=args.model, policy="full")
    fresh.set_cursor(hour.cursor)
    fresh.window.whole.says_header = session.window.whole.says_header
    fresh.sync(go_on)
    same_tokens = session.prompt.token_ids.tolist() == fresh.prompt.token_ids.tolist()
    reference, given = (one.prompt.score([5, 6, 7], go_on) for one in (fresh, session))
    off = float((reference - given).abs().max())
    near = closeness(reference, given)
    cache_mib = session.prompt.num_bytes / 2**20
    figures = {
        "num_edits": args.edits,
        "counts": dict(hour.counts),
        "seconds": time.perf_counter() - started_at,
        "same_tokens": same_tokens,
        "largest_logit_difference": off,
        "kl": max(near.kl),
        "cache_mib": cache_mib,
        "grown_mib": grown_mib,
    }
    harness.table(["figure", "value"], [[key, value] for key, value in figures.items()])
    bound = settings.cache_bytes / 2**20
    checks = [
        harness.check("edits", float(args.edits), "", ">= 5000"),
        harness.check("same tokens as a full prefill", float(same_tokens), "", ">= 1"),
        harness.check("logits off a full prefill's", off, "", f"<= {TOLERANCE}"),
        harness.check("cache", cache_mib, "MiB", f"<= {bound}"),
        harness.check("memory grown after the start", grown_mib, "MiB", f"<= {bound}"),
    ]
    harness.finish("long_session", args, figures, checks)


if __name__ == "__main__":
    main()
