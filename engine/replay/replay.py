"""Replay of a recorded editing session: what each policy costs, and how close it stays to `full`.

The oracle is a second session that prefills everything; its work is outside every timer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch

from ..engine import Engine
from ..model.layers import go_on
from ..prompt.growing_window import WHOLE
from ..prompt.policy import find_policy
from ..prompt.repair import BY_SHARE, RepairLimit
from ..session import Session
from ..wire.config import Completion, CompletionParams
from .scoring import Closeness, closeness, edit_similarity, percentile
from .trace import Complete, Cursor, Edit, Idle, Trace, next_place, read_trace

# The contract: greedy, 64 tokens, no stop string and no time limit; 32 tokens are scored.
PARAMS = CompletionParams(64, 0.0, 1.0, 0, (), 0.0)
NUM_SCORED = 32
COUNTS = ("wanted", "kept", "turned", "repaired", "recomputed")


def run(
    trace_path: Path,
    *,
    engine: Engine,
    model: str,
    policy: str,
    oracle: bool,
    heal_tokens_per_ms: float | None,
    layout: str | None = None,
    repair_limit: RepairLimit = BY_SHARE,
    depth: str = "full",
) -> Iterator[dict[str, Any]]:
    """Replay a trace; yield one dict per completion, then the summary.

    Args:
        trace_path: JSON lines, see `trace.py`.
        engine: runs the model; a session is opened in it and closed at the end.
        model: name, folder or file of the model.
        policy: how edits are served.
        oracle: compare each completion with a full prefill's.
        heal_tokens_per_ms: rows healed per simulated idle millisecond; None takes the rate
            of the opening prefill.
        layout: "spm", "psm" or None for the model's own.
        repair_limit: how many rows a round repairs, under a policy that repairs.
        depth: layers that a token runs through, as `CompletionParams` says; the oracle's all.

    Raises:
        BadRequest: the trace is malformed; nothing was computed.
    """
    trace = read_trace(trace_path)
    given = (engine, trace, model, policy, oracle, heal_tokens_per_ms, layout, repair_limit, depth)
    replay = _Replay(*given)
    try:
        yield from replay.steps()
    finally:
        replay.close()


def write(rows: Iterable[dict[str, Any]], *, as_json: bool, out: TextIO) -> None:
    """Print what `run` yields: JSON lines, or a table for people."""
    for row in rows:
        if as_json:
            line = json.dumps(row)
        elif "policy" in row:
            line = "\n" + "\n".join(f"{key:>28}  {_cell(value)}" for key, value in row.items())
        else:
            cells = (f"{row[f'num_tokens_{name}']:>11}" for name in COUNTS)
            agreed = _cell(row.get("top1_agreement"))
            line = f"{row['completion']:>4} {row['ready_ms']:>9.1f} {''.join(cells)} {agreed:>9}"
            if row["completion"] == 0:
                names = "".join(f"{name:>11}" for name in COUNTS)
                line = f"{'':>4} {'ready_ms':>9} {names} {'top-1':>9}\n{line}"
        print(line, file=out, flush=True)  # noqa: T201 - `out` is the caller's, not our stdout


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(eq=False)  # itself the key of its session
class _Replay:
    """One run: the measured session, the oracle, and the sums over completions."""

    engine: Engine
    trace: Trace
    model: str
    policy: str
    oracle: bool
    heal_tokens_per_ms: float | None
    layout: str | None
    repair_limit: RepairLimit
    depth: str
    open_ms: float | None = None
    edit_ms: float = 0.0
    num_edits: int = 0
    rows_at_open: int = 0
    rows_of_scoring: int = 0
    num_healed: int = 0
    done: list[dict[str, Any]] = field(default_factory=list)
    scored: Closeness = field(default_factory=lambda: Closeness([], []))
    scored_same: Closeness = field(default_factory=lambda: Closeness([], []))

    def __post_init__(self) -> None:
        self.session = self.engine.open(
            self,
            self.trace.text,
            path=self.trace.path,
            model=self.model,
            policy=self.policy,
            layout=self.layout,
        )
        self.session.repair_limit = self.repair_limit
        self.session.heals = "full"  # as the trace format says
        self.session.cold_limit = WHOLE  # what is computed must not depend on the machine

    def steps(self) -> Iterator[dict[str, Any]]:
        """Carry out the records in order."""
        for index, record in enumerate(self.trace.records):
            match record:
                case Edit():
                    self.session.edit(record.edits)
                    self.num_edits += len(record.edits)
                    self._patch()
                case Cursor():
                    self.session.set_cursor(record.offset)
                    self._patch()
                case Idle():
                    if self.open_ms is None:
                        self._prefill(next_place(self.trace.records[index:]))
                    elif find_policy(self.policy).heals_when_idle:
                        self._heal(record.ms)
                case Complete():
                    if self.open_ms is None:
                        self._prefill(record.offset)
                    row = self._complete(record)
                    self.done.append(row)
                    yield row
        yield self._summary()

    def close(self) -> None:
        """Give the sessions' memory back."""
        self.engine.close(self)

    def _open_oracle(self, text: str) -> Session:
        """Open a document beside the engine's own: it must not push the measured one out."""
        oracle = Session(
            self.session.model,
            text,
            path=self.trace.path,
            policy="full",
            layout=self.layout,
            chunk_tokens=self.engine.config.chunk_tokens,
            make_room=lambda *_: None,
        )
        # A text of a length between depends on whether it was shorter or longer before.
        oracle.window.whole.says_header = self.session.window.whole.says_header
        return oracle

    def _prefill(self, anchor: int | None) -> None:
        """Do the first prefill, which is `open_ms` and in no other sum."""
        if self.session.anchor is None:
            if anchor is None:  # nothing is ever completed: there is no place to prefill for
                return
            self.session.set_cursor(anchor)
        self.open_ms = _timed_ms(lambda: self.session.sync(go_on))
        self.rows_at_open = self._num_rows()
        self.session.prompt.take_counts()
        if self.heal_tokens_per_ms is None:
            self.heal_tokens_per_ms = self.rows_at_open / max(self.open_ms, 1e-3)

    def _num_rows(self) -> int:
        """Return all rows computed so far; the policy "heal" also heals outside idle time."""
        return self.session.prompt.num_rows_forwarded + self.session.prompt.num_rows_healed

    def _patch(self) -> None:
        if self.open_ms is not None:
            self.edit_ms += _timed_ms(lambda: self.session.sync(go_on))

    def _heal(self, ms: float) -> None:
        left = int(min(ms * (self.heal_tokens_per_ms or 0.0), sys.maxsize))
        while left > 0 and (rows := self.session.heal(left, go_on)):
            left -= rows
            self.num_healed += rows

    def _complete(self, record: Complete) -> dict[str, Any]:
        params = replace(PARAMS, depth=self.depth)
        completion = self.session.complete(record.offset, params, go_on)
        counts = self.session.prompt.take_counts()
        row: dict[str, Any] = {
            "completion": len(self.done),
            "line": record.line,
            "offset": record.offset,
            "text": completion.text,
            "edit_ms": self.edit_ms,
            "ttft_ms": completion.ttft_ms,
            "ready_ms": self.edit_ms + completion.ttft_ms,
            "total_ms": completion.total_ms,
        }
        self.edit_ms = 0.0
        row |= {f"num_tokens_{name}": getattr(counts, f"num_{name}") for name in COUNTS}
        row["reference_edit_similarity"] = (
            None if record.reference is None else edit_similarity(completion.text, record.reference)
        )
        if self.oracle:
            row |= self._compare(record, completion)
        return row

    def _compare(self, record: Complete, completion: Completion) -> dict[str, Any]:
        """Score the session against a full prefill of the canonical and of its own layout."""
        rows_before = self._num_rows()
        text = self.session.text
        oracle = self._open_oracle(text)
        oracle.set_cursor(record.offset)
        oracle.sync(go_on)
        full = oracle.complete(record.offset, PARAMS, go_on)
        token_ids = self._scored_tokens(record, full, oracle)
        reference = oracle.prompt.score(token_ids, go_on)
        given = self.session.prompt.score(token_ids, go_on)
        near = same = closeness(reference, given)
        if (anchor := self.session.anchor) is not None and anchor != record.offset:
            oracle = self._open_oracle(text[:anchor] + text[record.offset :])
            oracle.set_cursor(anchor)
            oracle.edit([(anchor, anchor, text[anchor : record.offset])])
            oracle.sync(go_on)
            same = closeness(oracle.prompt.score(token_ids, go_on), given)
        self.rows_of_scoring += self._num_rows() - rows_before
        for total, part in ((self.scored, near), (self.scored_same, same)):
            total.same_top1.extend(part.same_top1)
            total.kl.extend(part.kl)
        return {
            "top1_agreement": _mean(near.same_top1),
            "kl_mean": _mean(near.kl),
            "same_layout_top1_agreement": _mean(same.same_top1),
            "same_layout_kl_mean": _mean(same.kl),
            "exact_match_full": completion.text == full.text,
            "full_text": full.text,
        }

    def _scored_tokens(self, record: Complete, full: Completion, oracle: Session) -> list[int]:
        token_ids = list(full.token_ids)
        if record.reference is not None:
            # Without fill-in-the-middle, white space before the cursor is generated again.
            written = oracle.forced_text + record.reference
            token_ids = oracle.model.tokenizer.encode(written).token_ids.tolist()
        # An empty completion still has a first token's distribution; which token then follows
        # does not matter, no row is predicted from it.
        return token_ids[:NUM_SCORED] or [0]

    def _summary(self) -> dict[str, Any]:
        rows = self.done
        passed_over = self.rows_at_open + self.rows_of_scoring + self.num_healed
        similar = [v for row in rows if (v := row["reference_edit_similarity"]) is not None]
        times = {key: [row[key] for row in rows] for key in ("edit_ms", "ttft_ms", "ready_ms")}
        exact = [row["exact_match_full"] for row in rows if self.oracle]
        return {
            "policy": self.policy,
            "model": self.model,
            "num_edits": self.num_edits,
            "num_completions": len(rows),
            "top1_agreement": _mean(self.scored.same_top1),
            "kl_mean": _mean(self.scored.kl),
            "exact_match_full": _mean(exact),
            "reference_edit_similarity": _mean(similar),
            "open_ms": self.open_ms,
            "edit_ms_p50": median(times["edit_ms"]) if rows else None,
            "ttft_ms_p50": median(times["ttft_ms"]) if rows else None,
            "ttft_ms_p95": percentile(times["ttft_ms"], 0.95),
            "ready_ms_p50": median(times["ready_ms"]) if rows else None,
            "ready_ms_p95": percentile(times["ready_ms"], 0.95),
            **{f"num_tokens_{n}": sum(row[f"num_tokens_{n}"] for row in rows) for n in COUNTS},
            "num_tokens_healed": self.num_healed,
            "num_rows_forwarded": self._num_rows() - passed_over,
            "same_layout_top1_agreement": _mean(self.scored_same.same_top1),
            "same_layout_kl_mean": _mean(self.scored_same.kl),
            "num_tokens_scored": len(self.scored.kl),
            "layout": self.session.layout_name,
            "heal_tokens_per_ms": self.heal_tokens_per_ms,
        }


def _timed_ms(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None
