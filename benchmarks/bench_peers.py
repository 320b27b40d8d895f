"""The same keystrokes through Keyturn and through llama.cpp's server: how soon each is ready.

Both sides have the same text, a file that fills a window of --context tokens, and the same weights.
llama.cpp gets it as token ids, so encoding costs it nothing, in either order of suffix and prefix,
with and without its reuse of shifted chunks, with the suffix whole or cut some lines below the
cursor, and with its host-memory cache of old prompts. Every round begins with contenders that know
nothing: that cache would answer a second visit to a place as if it were the first.

Ready is the first token: ours is the patch plus the completion's first token, the peer's is by its
own clock, which leaves HTTP out ("request" has it). By default ours shows less text first at a
place where much is missing ("prompt" has the tokens); --cold-budget-ms 0 always shows the whole.
Between two steps the window grows, and we heal as the product does in idle time; llama.cpp has
nothing to do then.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import harness
import numpy as np
from peers import processes
from peers.sides import OWN, Own, Peer, Ready, Side, accepted
from peers.steps import ABOVE, ACCEPT, ENTER, JUMPS, KEY, UNDO, Step, place, steps

from keyturn.engine.engine import Engine
from keyturn.engine.loaded_model import Model
from keyturn.engine.replay.scoring import percentile
from keyturn.server.settings import Settings

MODES = ("alternating", "alone")
# What makes llama.cpp compute again what stands behind a change, or what changed sides.
FAR = (ENTER, ABOVE, *JUMPS)
# Of tokens redone: with fewer the peer is as quick as it can be.
FEW = 16

# What was taken, by mode, kind of step and contender.
Takes = dict[tuple[str, str, str], list[Ready]]


def main() -> None:
    """Run, print, and save if asked to."""
    args = _arguments()
    settings = Settings(num_threads=args.threads, window_tokens=args.context)
    if args.cold_budget_ms is not None:
        settings = replace(settings, cold_budget_ms=args.cold_budget_ms)
    engine = Engine(settings.engine_config())
    model = engine.load(args.model)
    text, cursor, above = place(model, args.context, args.distance)
    round_of = steps(text, cursor, above)
    names = [OWN, *_peer_names(args)]
    takes: Takes = defaultdict(list)
    for mode in args.modes:
        # Alone: one after the other, each with no other process started.
        for together in [names] if mode == MODES[0] else [[name] for name in names]:
            for number in range(args.rounds):
                with contextlib.ExitStack() as stack:
                    sides = {
                        name: Own(engine, args.model, settings.policy, text, cursor)
                        if name == OWN
                        else _started_peer(stack, args, model, name, text)
                        for name in together
                    }
                    measure(sides, round_of, mode, takes)
                print(f"{mode}, round {number + 1}: {', '.join(together)}", flush=True)
    runs: list[dict[str, Any]] = [
        {"mode": mode, "step": kind, "contender": name}
        | {field: [getattr(one, field) for one in took] for field in Ready._fields}
        for (mode, kind, name), took in takes.items()
    ]
    harness.table(
        ["step", "mode", "contender", "prompt", "redone", "ready ms p50", "p95", "request ms p50"],
        [
            [run["step"], run["mode"], run["contender"], *_figures_of(run)]
            for run in sorted(runs, key=lambda run: _order(run["step"], run["mode"]))
        ],
    )
    figures = {
        "threads": args.threads,
        "context": args.context,
        "distance": args.distance,
        "cold_budget_ms": settings.cold_budget_ms,
        "policy": settings.policy,
        "dtype": engine.status()["dtype"],
        "peer_quant": "Q8_0" if args.q8 else "as in the file",
        "runs": runs,
    }
    harness.finish("peers", args, figures, checks(runs))


def _arguments() -> argparse.Namespace:
    parser = processes.parser(__doc__ or "", rounds=3)
    add = parser.add_argument
    add("--distance", type=int, help="tokens from the edit above to the cursor; default: 1,000")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--layouts", nargs="+", choices=("spm", "psm"), default=["spm", "psm"])
    add("--suffix-lines", nargs="+", type=int, default=[0, 16], help="below the cursor; 0: all")
    add("--cold-budget-ms", type=float, help="ours, 0: always the whole window")
    add("--q8", action="store_true", help="the peer's weights as Q8_0")
    args = parser.parse_args()
    args.distance = args.distance or min(1000, args.context // 2)
    if args.distance >= args.context * 2 // 3:
        parser.error(
            f"--distance {args.distance} does not fit --context {args.context}: "
            f"the cursor is {args.context * 2 // 3} tokens below the top"
        )
    processes.say_if_alone(args)
    return args


def measure(sides: Mapping[str, Side], round_of: list[Step], mode: str, takes: Takes) -> None:
    """Do a round, each step by each side in turn; add what each took for each kind."""
    for step in round_of:
        for name, side in sides.items():
            took = accepted(side, step.cursor) if step.kind == ACCEPT else side.step(step)
            if step.kind:
                takes[mode, step.kind, name].append(took)
            if step.kind != KEY:
                side.rest()


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
    server = processes.started(args, model, name, reuse, *(["--q8"] if args.q8 else []))
    stack.callback(server.close)
    return Peer(server, model, layout, lines, text)


def _figures_of(run: dict[str, Any]) -> list[object]:
    ready_ms = run["ready_ms"]
    prompt, redone, median, request = (
        float(np.median(run[key])) for key in ("num_prompt", "num_redone", "ready_ms", "request_ms")
    )
    return [round(prompt), round(redone), median, percentile(ready_ms, 0.95), request]


def _order(step: str, mode: str) -> tuple[int, int]:
    kinds = [KEY, ACCEPT, ENTER, ABOVE, UNDO]
    for kind, lines in JUMPS.items():
        kinds += [kind, f"return, {abs(lines)} lines"]
    return MODES.index(mode), kinds.index(step)


if __name__ == "__main__":
    main()
