"""The same keystrokes through Keyturn and through llama.cpp's server: how soon each is ready.

Both sides see the same text, the whole file in a window of --context tokens, and the same weights.
llama.cpp gets it as token ids, so encoding costs it nothing, in either order of suffix and prefix,
with and without its reuse of shifted chunks, with the suffix whole or cut some lines below the
cursor, and with its host-memory cache of old prompts. Every kind of step begins at the same state.

Ready is the first token: ours is the patch plus the completion's first token, the peer's is by its
own clock, which leaves HTTP out ("request" has it). Between two steps we heal as the product does
in idle time; llama.cpp has nothing to do then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from itertools import product
from typing import Any, NamedTuple, Protocol

import harness
import numpy as np
from bench_cpu import FOLDER, Contender
from cpu import cpu_peer
from traces.cursor import lines_away

from keyturn.engine.engine import Engine
from keyturn.engine.files.catalog import resolve
from keyturn.engine.prompt.prompt_encoder import PromptEncoder
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.session import Model
from keyturn.engine.wire.config import CompletionParams
from keyturn.server.settings import Settings

SOURCE = harness.ROOT / "examples" / "traces" / "starlette-datastructures.jsonl"
OWN = "keyturn"
TYPED, LINE = "result =", "    value = convert(value)\n"
SUGGESTED_TOKENS = 16
MODES = ("alternating", "alone")
KEY, ENTER, ABOVE, UNDO, ACCEPT = "a key", "Enter", "edit above", "undo of it", "accepted"
JUMPS = {"jump 10 down": 10, "jump 25 up": -25}
# What makes llama.cpp compute again what stands behind a change, or what changed sides.
FAR = (ENTER, ABOVE, *JUMPS)
# Of tokens redone: with fewer the peer is as quick as it can be.
FEW = 16
# Between two steps, of which healing may use half.
REST_S = 2.0

Change = tuple[int, int, str]


class Step(NamedTuple):
    """One thing that a person does.

    Attributes:
        kind: "" for one that only leads back to where the next kind begins.
        change: of the text; None for none.
        cursor: where the completion is asked for, after it.
    """

    kind: str
    change: Change | None
    cursor: int


class Ready(NamedTuple):
    """What one step took: tokens redone, and ms to the first token."""

    num_redone: int
    ready_ms: float
    request_ms: float


class Side(Protocol):
    """One contender with the document as it has it."""

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        ...

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        ...

    def rest(self) -> None:
        """Do what idle time is used for."""
        ...


class Own:
    """Keyturn, as a replay uses it: the cache is patched, then a completion is asked for."""

    def __init__(self, engine: Engine, model: str, policy: str, text: str, cursor: int) -> None:
        """Open the document and have its cache warm."""
        self._session = engine.open(OWN, text, path=SOURCE.stem, model=model, policy=policy)
        self._session.complete(cursor, _params(1), _go_on)

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        prompt = self._session.prompt
        before, start = prompt.num_rows_forwarded, time.perf_counter()
        if step.change is not None:
            self._session.edit([step.change])
            self._session.sync(_go_on)
        patched_ms = (time.perf_counter() - start) * 1e3
        completion = self._session.complete(step.cursor, _params(1), _go_on)
        ready_ms = patched_ms + completion.ttft_ms
        return Ready(prompt.num_rows_forwarded - before, ready_ms, ready_ms)

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        return self._session.complete(cursor, _params(SUGGESTED_TOKENS), _go_on).text

    def rest(self) -> None:
        """Heal as the settings say, for half of a pause."""
        until = time.perf_counter() + REST_S / 2
        while time.perf_counter() < until and self._session.heal(64, _go_on):
            pass


class Peer:
    """llama.cpp's server in one of its settings, in a process of its own."""

    def __init__(
        self, server: Contender, model: Model, layout: str, suffix_lines: int, text: str
    ) -> None:
        """Take a started server; the suffix ends so many lines below the cursor, 0: not."""
        self._server = server
        self._text = text
        self._suffix_lines = suffix_lines
        self._encoder = PromptEncoder(
            model.template,
            model.tokenizer,
            layout,
            model.window_tokens,
            model.chars_per_token,
            SOURCE.stem,
        )

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        if step.change is not None:
            start, end, inserted = step.change
            self._text = self._text[:start] + inserted + self._text[end:]
        told = self._server.run(self.prompt(step.cursor), 0)
        return Ready(told["num_redone"], told["ready_ms"], told["request_ms"])

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        return self._server.run(self.prompt(cursor), SUGGESTED_TOKENS - 1)["text"]

    def rest(self) -> None:
        """Do nothing, as it does."""

    def prompt(self, cursor: int) -> list[int]:
        """Return the tokens of the prompt: ours where order and suffix are ours."""
        end = len(self._text)
        if self._suffix_lines:
            below = lines_away(self._text, cursor, self._suffix_lines)
            end = end if below is None else min(end, below + 1)
        tokens = self._encoder.encode(self._text[:end], cursor, cursor).tokens
        return np.concatenate(list(tokens.values())).tolist()


def main() -> None:
    """Run, print, and save if asked to."""
    args = _arguments()
    settings = Settings(num_threads=args.threads, window_tokens=args.context)
    engine = Engine(settings.engine_config())
    model = engine.load(args.model)
    text, cursor, above = place(model, args.context, args.distance)
    round_of = steps(text, cursor, above)
    names = [OWN, *_peer_names(args)]
    runs: list[dict[str, Any]] = []
    for mode in args.modes:
        # Alone: one after the other, each with no other process started.
        for together in [names] if mode == MODES[0] else [[name] for name in names]:
            with contextlib.ExitStack() as stack:
                sides = {
                    name: Own(engine, args.model, settings.policy, text, cursor)
                    if name == OWN
                    else _started_peer(stack, args, model, name, text)
                    for name in together
                }
                runs += measured(sides, round_of, args.rounds, mode)
            print(f"{mode}: {', '.join(together)}", flush=True)
    harness.table(
        ["step", "mode", "contender", "redone", "ready ms p50", "p95", "request ms p50"],
        [
            [run["step"], run["mode"], run["contender"], *_figures_of(run)]
            for run in sorted(runs, key=lambda run: _order(run["step"], run["mode"]))
        ],
    )
    figures = {
        "threads": args.threads,
        "context": args.context,
        "distance": args.distance,
        "num_prompt_tokens": len(model.tokenizer.encode(text).token_ids) + 3,
        "policy": settings.policy,
        "dtype": engine.status()["dtype"],
        "peer_quant": "Q8_0" if args.q8 else "as in the file",
        "runs": runs,
    }
    harness.finish("peers", args, figures, checks(runs))


def _arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__ or "")
    add = parser.add_argument
    add("--peer-python", help="an interpreter that has xllamacpp and gguf")
    add("--rounds", type=int, default=3, help="after one of warm-up")
    add("--context", type=int, default=2048, help="tokens of the window")
    add("--distance", type=int, help="tokens from the edit above to the cursor; default: 1,000")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--layouts", nargs="+", choices=("spm", "psm"), default=["spm", "psm"])
    add("--reuse", nargs="+", type=int, default=[0, 256], help="n_cache_reuse of the peer")
    add("--suffix-lines", nargs="+", type=int, default=[0, 16], help="below the cursor; 0: all")
    add("--cache-ram", type=int, default=1024, help="MiB of the peer's host-memory cache")
    add("--q8", action="store_true", help="the peer's weights as Q8_0")
    parser.set_defaults(threads=2)
    args = parser.parse_args()
    args.distance = args.distance or min(1000, args.context // 2)
    if args.distance >= args.context * 2 // 3:
        parser.error(
            f"--distance {args.distance} does not fit --context {args.context}: "
            f"the cursor is {args.context * 2 // 3} tokens below the top"
        )
    if args.peer_python is None:
        print(f"no --peer-python, so no peer; to get one:\n  {cpu_peer.INSTALL}", flush=True)
    return args


def place(model: Model, context: int, distance: int) -> tuple[str, int, int]:
    """Return a text that fills the window, the cursor in it, and where the edit above goes.

    The cursor is on a new line with the indentation of the one before it, at two thirds.
    """
    with SOURCE.open(encoding="utf-8") as file:
        text = json.loads(file.readline())["open"]["text"]
    starts = model.tokenizer.encode(text).starts
    # What is typed, and an edge of the window, have room; neither side ever moves the window.
    most_chars = int(0.9 * context * model.chars_per_token)
    num_tokens = min(int(0.9 * context), int(np.searchsorted(starts, most_chars)), len(starts) - 1)
    at = num_tokens * 2 // 3
    text = text[: _line_start(text, int(starts[num_tokens]))]
    above = _line_start(text, int(starts[max(0, at - distance)]))
    end = _line_start(text, int(starts[at])) - 1
    last = text[_line_start(text, end) : end]
    indent = last[: len(last) - len(last.lstrip())] or "    "
    return f"{text[:end]}\n{indent}{text[end:]}", end + 1 + len(indent), above


def steps(text: str, cursor: int, above: int) -> list[Step]:
    """Return a round: every kind of step once, or as often as there are keys, and back again."""
    indent = text[_line_start(text, cursor) : cursor]
    found = [
        Step(KEY, (cursor + at, cursor + at, key), cursor + at + 1) for at, key in enumerate(TYPED)
    ]
    end = cursor + len(TYPED)
    found.append(Step(ENTER, (end, end, "\n" + indent), end + 1 + len(indent)))
    found.append(Step("", (cursor, end + 1 + len(indent), ""), cursor))
    found.append(Step(ACCEPT, None, cursor))
    found.append(Step(ABOVE, (above, above, LINE), cursor + len(LINE)))
    found.append(Step(UNDO, (above, above + len(LINE), ""), cursor))
    for kind, lines in JUMPS.items():
        if (there := lines_away(text, cursor, lines)) is None:
            raise SystemExit(f"{kind}: the text has no such line; raise --context")
        found += [Step(kind, None, there), Step(f"return, {abs(lines)} lines", None, cursor)]
    return found


def measured(
    sides: dict[str, Side], round_of: list[Step], num_rounds: int, mode: str
) -> list[dict[str, Any]]:
    """Do the rounds, each step by each side in turn; return what each took for each kind."""
    found: dict[tuple[str, str], list[Ready]] = defaultdict(list)
    for number in range(num_rounds + 1):
        for step in round_of:
            for name, side in sides.items():
                took = accepted(side, step.cursor) if step.kind == ACCEPT else side.step(step)
                if number and step.kind:
                    found[step.kind, name].append(took)
                if step.kind != KEY:
                    side.rest()
    return [
        {"mode": mode, "step": kind, "contender": name}
        | {field: [getattr(one, field) for one in took] for field in Ready._fields}
        for (kind, name), took in found.items()
    ]


def accepted(side: Side, cursor: int) -> Ready:
    """Accept what the side itself suggests, if it suggests anything, and take it back."""
    text = side.suggestion(cursor) or TYPED
    took = side.step(Step(ACCEPT, (cursor, cursor, text), cursor + len(text)))
    side.step(Step("", (cursor, cursor + len(text), ""), cursor))
    return took


def checks(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold ours against the peer's best at every step.

    At least 5 times sooner than the best of those that compute much again, where a change has text
    behind it or changes sides; no more than a tenth later than the best of those that hardly
    compute anything.
    """
    found = []
    by_step: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        by_step[run["step"], run["mode"]][run["contender"]] = run
    for (step, mode), here in sorted(by_step.items(), key=lambda item: _order(*item[0])):
        own = here.pop(OWN, None)
        if own is None:
            continue
        ready_ms = float(np.median(own["ready_ms"]))
        best = {True: np.inf, False: np.inf}
        for run in here.values():
            is_few = float(np.median(run["num_redone"])) < FEW
            best[is_few] = min(best[is_few], float(np.median(run["ready_ms"])))
        if np.isfinite(best[False]) and step in FAR:
            name = f"{step}, {mode}: sooner than the peer"
            found.append(harness.check(name, best[False] / ready_ms, "times", ">= 5"))
        if np.isfinite(best[True]):
            name = f"{step}, {mode}: of the peer's time for fewer than {FEW} tokens"
            found.append(harness.check(name, ready_ms / best[True], "", "<= 1.1"))
    return found


def _peer_names(args: argparse.Namespace) -> list[str]:
    if args.peer_python is None:
        return []
    found = product(args.layouts, args.reuse, args.suffix_lines)
    return [
        f"{layout}, reuse {reuse}{f', {lines} lines below' if lines else ''}"
        for layout, reuse, lines in found
    ]


def _started_peer(
    stack: contextlib.ExitStack, args: argparse.Namespace, model: Model, name: str, text: str
) -> Peer:
    found = product(args.layouts, args.reuse, args.suffix_lines)
    layout, reuse, lines = dict(zip(_peer_names(args), found, strict=True))[name]
    command = [args.peer_python, str(FOLDER / "cpu" / "cpu_peer.py"), str(resolve(args.model))]
    command += ["--keep", "--reuse", str(reuse), "--cache-ram", str(args.cache_ram)]
    command += ["--threads", str(args.threads), "--capacity", str(model.capacity)]
    try:
        server = Contender(name, [*command, *(["--q8"] if args.q8 else [])])
    except (OSError, RuntimeError) as error:
        sys.exit(f"{error}\nto get a peer:\n  {cpu_peer.INSTALL}")
    stack.callback(server.close)
    return Peer(server, model, layout, lines, text)


def _figures_of(run: dict[str, Any]) -> list[object]:
    ready_ms = run["ready_ms"]
    redone, median, request = (
        float(np.median(run[key])) for key in ("num_redone", "ready_ms", "request_ms")
    )
    return [round(redone), median, percentile(ready_ms, 0.95), request]


def _order(step: str, mode: str) -> tuple[int, int]:
    kinds = [KEY, ACCEPT, ENTER, ABOVE, UNDO]
    for kind, lines in JUMPS.items():
        kinds += [kind, f"return, {abs(lines)} lines"]
    return MODES.index(mode), kinds.index(step)


def _params(num_tokens: int) -> CompletionParams:
    return Settings(max_tokens=num_tokens, time_budget_ms=0.0).completion_params()


def _line_start(text: str, offset: int) -> int:
    return text.rfind("\n", 0, offset) + 1


def _go_on() -> None:
    """Never cancel."""


if __name__ == "__main__":
    main()
