"""When completions that turn out wrong are given up: the stop against the gate, by what they lose.

At held-out places the model writes without either. Right is a completion whose first line is the
reference's; lost is a right one that is ended within that line. The rule is fitted on all packages
but one and tried on that one, its threshold included; `--fit` writes the rule of all. Before the
start nothing is decoded at all: by the state of the cursor's row after few layers and the place's
kind, or by what the stop says of the first token, which the prompt's logits give.

    python benchmarks/bench_stop.py --places 1200 --rows stop.jsonl
    python benchmarks/bench_stop.py --from-rows stop.jsonl --plot stop.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray
from quality import fim_fetch, fim_held_out

from keyturn.engine.engine import Engine
from keyturn.engine.exits import stop
from keyturn.engine.exits.fill import normalised
from keyturn.engine.exits.stop import StopRule
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import ColdLimit
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import asked

NUM_PLACES = 300
WINDOW = 512
LOSSES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
# Fitted for less than what is promised: other packages lose more.
FITTED_LOSS = 0.04
_RIDGE = 1e-2
# Before the start: layers that the cursor's row has been through.
START_DEPTHS = (2, 4, 6)
_START_RIDGE = 0.3
_NUM_RESAMPLED = 500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Written:
    """One completion.

    Attributes:
        package: where the place is.
        is_right: whether its first line is the reference's.
        num_tokens: its tokens, one that ended it included.
        features: `stop.FEATURES` after each token of the first line.
        states: of the cursor's row after `START_DEPTHS` layers, if they were noted.
    """

    package: str
    is_right: bool
    num_tokens: int
    features: list[list[float]]
    states: list[list[float]] = field(default_factory=list)


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--places", type=int, default=NUM_PLACES)
    parser.add_argument("--packages", nargs="*", help="of these alone")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--rows", type=Path, help="write what was found at each place here")
    parser.add_argument("--from-rows", type=Path, nargs="+", help="sum such files up instead")
    parser.add_argument("--fit", type=Path, help="write the rule of these places here")
    parser.add_argument("--plot", type=Path, help="draw the curves here")
    args = parser.parse_args()
    if args.from_rows:
        lines = [line for file in args.from_rows for line in file.read_text().splitlines()]
        found = [Written(**json.loads(line)) for line in lines]
    else:
        found = written(args)
    found = [each for each in found if each.features]
    if args.fit:
        decoder = Engine(COMMAND_LINE.engine_config()).load(args.model).decoder
        rule = fitted(found)
        most = _most(found, [odds(rule, each) for each in found], FITTED_LOSS)
        stop.save(args.fit, replace(rule, most=most), decoder)
    rows = curves(found)
    harness.table(list(rows[0]), [list(row.values()) for row in rows])
    if args.plot:
        plotted(rows, args.plot)
    figures, checks = summarised(found)
    harness.finish("stop", args, {**figures, "num_places": len(found), "runs": rows}, checks)


def written(args: argparse.Namespace) -> list[Written]:
    """Complete at every place, without gate and stop."""
    engine = Engine(COMMAND_LINE.engine_config())
    model = engine.load(args.model)
    files = fim_fetch.held_out_files(args.cache)
    if args.packages:
        files = [file for file in files if file[0] in args.packages]
    tasks = fim_held_out.draw(
        files,
        args.places,
        seed=args.seed,
        num_tokens=lambda text: len(model.tokenizer.encode(text).token_ids),
    )
    found: list[Written] = []
    for number, task in enumerate(tasks):
        seen: list[tuple[float, ...]] = []
        text, at = task.prefix + task.suffix, len(task.prefix)
        session = engine.open("stop", text, path=task.path, model=args.model, policy="repair")
        session.model = replace(model, stop=_recorder(seen))
        session.cold_limit = ColdLimit(max_rows=WINDOW)
        params = replace(asked(text, at, COMMAND_LINE.completion_params()), depth="exact")
        made = session.complete(at, params, go_on)
        session.prompt.drop_generated()
        states = session.prompt.states([0], START_DEPTHS, go_on)
        cursor = [[round(x, 3) for x in normalised(each[:1])[0].tolist()] for each in states]
        engine.close("stop")
        is_right = _first_line(made.text) == _first_line(task.middle)
        package = task.name.split("/")[1]
        num_tokens = len(made.token_ids) + (made.stop_reason == "end")
        found.append(Written(package, is_right, num_tokens, [*map(list, seen)], cursor))
        if args.rows:
            row = {name: getattr(found[-1], name) for name in Written.__slots__}
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{number + 1} {task.name} {'right' if is_right else 'wrong'}", flush=True)
    return found


def _recorder(seen: list[tuple[float, ...]]) -> StopRule:
    class Recorder(StopRule):
        def odds(self, features: tuple[float, ...]) -> float:
            seen.append(features)
            return -math.inf

    return Recorder((), 0.0, math.inf)


def _first_line(text: str) -> str:
    return text.split("\n")[0].rstrip()


def fitted(found: Sequence[Written]) -> StopRule:
    """Return the logistic regression of "wrong" on the features, without a threshold.

    Of each completion only the tokens in its first half count, all together as one: that is where a
    stop is worth something.
    """
    halves = [each.features[: max(1, math.ceil(each.num_tokens / 2))] for each in found]
    inputs = np.array([row for half in halves for row in half])
    repeats = [len(half) for half in halves]
    wrong = np.repeat([float(not each.is_right) for each in found], repeats)
    share = np.repeat([1 / len(half) for half in halves], repeats)
    weights, bias = _logistic(inputs, wrong, share / share.sum(), _RIDGE)
    return StopRule(tuple(weights.tolist()), bias, math.inf)


def _logistic(inputs: Floats, wrong: Floats, share: Floats, penalty: float) -> tuple[Floats, float]:
    """Return weights and bias by Newton's method, with a ridge on the standardised weights."""
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    ones = np.ones((len(inputs), 1))
    inputs = np.concatenate([(inputs - mean) / scale, ones], 1)
    ridge = np.diag([2 * penalty] * len(mean) + [0.0])
    weights = np.zeros(len(ridge))
    for _ in range(12):
        likely = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (share * (likely - wrong)) + ridge @ weights
        curvature = (inputs * (share * likely * (1 - likely))[:, None]).T @ inputs + ridge
        weights -= np.linalg.solve(curvature, gradient)
    plain = weights[:-1] / scale
    return plain, float(weights[-1] - plain @ mean)


def odds(rule: StopRule, each: Written) -> Floats:
    """Return a rule's log odds after each token of the first line."""
    return np.array([rule.odds(tuple(row)) for row in each.features])


def joint(each: Written) -> Floats:
    """Return the gate's score: minus the log of the joint probability."""
    return -np.array(each.features)[:, 0]


def smallest(each: Written) -> Floats:
    """Return minus the log of the smallest probability so far."""
    return -np.minimum.accumulate(np.array(each.features)[:, 2])


def tried(
    found: Sequence[Written], scores: Sequence[Floats], mosts: Sequence[float]
) -> dict[str, float]:
    """Return what ending each completion where its score exceeds its threshold comes to."""
    ends = []
    for each, score, most in zip(found, scores, mosts, strict=True):
        beyond = np.flatnonzero(score > most)
        ends.append(int(beyond[0]) if len(beyond) else each.num_tokens)
    end, all_tokens = np.array(ends), np.array([each.num_tokens for each in found])
    right = np.array([each.is_right for each in found])
    stopped = end < all_tokens
    # The first token comes from the prompt's logits; behind the last no row is computed.
    steps, all_steps = np.minimum(end, all_tokens - 1), all_tokens - 1
    return {
        "lost, of right": float(stopped[right].mean()),
        "before half, of wrong": float((end < all_tokens / 2)[~right].mean()),
        "ever, of wrong": float(stopped[~right].mean()),
        "layer runs, of all": float(steps.sum() / all_steps.sum()),
        "of wrong ones'": float(steps[~right].sum() / all_steps[~right].sum()),
    }


def _left_out(found: Sequence[Written]) -> list[tuple[StopRule, list[Written]]]:
    """Return for each completion the rule, and the completions, of the other packages."""
    by_package = {}
    for package in {each.package for each in found}:
        others = [each for each in found if each.package != package]
        by_package[package] = fitted(others), others
    return [by_package[each.package] for each in found]


def curves(found: Sequence[Written]) -> list[dict[str, Any]]:
    """Return what each way does at each loss, the threshold set on the same completions."""
    ours = [odds(rule, each) for each, (rule, _) in zip(found, _left_out(found), strict=True)]
    ways = {
        "joint probability": (found, [joint(each) for each in found]),
        "smallest probability": (found, [smallest(each) for each in found]),
        "stop": (found, ours),
        "before the start, first token": (found, [each[:1] for each in ours]),
    }
    noted = [each for each in found if each.states]
    for at, depth in enumerate(START_DEPTHS if noted else ()):
        ways[f"before the start, layer {depth}"] = noted, _by_state(noted, at)
    rows = []
    for way, (of, scores) in ways.items():
        for loss in LOSSES:
            mosts = [_most(of, scores, loss)] * len(of)
            rows.append({"way": way, "loss": loss, **tried(of, scores, mosts)})
    return rows


def _most(found: Sequence[Written], scores: Sequence[Floats], loss: float) -> float:
    """Return what is exceeded in such a share of the right ones."""
    of_right = [s.max() for s, each in zip(scores, found, strict=True) if each.is_right]
    return float(np.quantile(of_right, 1 - loss))


def _by_state(found: Sequence[Written], at: int) -> list[Floats]:
    """Return the odds by the cursor's state after some layers, fitted on other packages."""
    inputs = np.array([[*each.states[at], *each.features[0][-2:]] for each in found])
    wrong = np.array([float(not each.is_right) for each in found])
    packages = np.array([each.package for each in found])
    scores = np.zeros(len(found))
    for package in np.unique(packages):
        here = packages == package
        share = np.full((~here).sum(), 1 / (~here).sum())
        weights, bias = _logistic(inputs[~here], wrong[~here], share, _START_RIDGE)
        scores[here] = inputs[here] @ weights + bias
    return [np.array([score]) for score in scores]


def summarised(found: Sequence[Written]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what rules and thresholds of other packages do, with the promises."""
    rules = _left_out(found)
    known: dict[str, tuple[float, float]] = {}
    for each, (rule, others) in zip(found, rules, strict=True):
        if each.package not in known:
            scores = [joint(other) for other in others], [odds(rule, other) for other in others]
            known[each.package] = (
                _most(others, scores[0], FITTED_LOSS),
                _most(others, scores[1], FITTED_LOSS),
            )
    gate = [joint(each) for each in found]
    ours = [odds(rule, each) for each, (rule, _) in zip(found, rules, strict=True)]
    figures: dict[str, Any] = {
        "gate": tried(found, gate, [known[each.package][0] for each in found]),
        "stop": tried(found, ours, [known[each.package][1] for each in found]),
    }
    harness.table(
        ["threshold of other packages", *figures["stop"]],
        [[name, *values.values()] for name, values in figures.items()],
    )
    half, lost = figures["stop"]["before half, of wrong"], figures["stop"]["lost, of right"]
    fewer = _layer_runs_against_the_gate(found, {"gate": gate, "stop": ours}, lost)
    figures["layer runs against the gate at the same loss"] = fewer
    return figures, [
        harness.check("stop: wrong ones before half", 100 * half, "%", ">= 50"),
        harness.check("stop: right ones lost", 100 * lost, "%", "<= 5"),
        harness.check("stop: layer runs against the gate's", fewer[0], "x", "<= 1"),
    ]


def _layer_runs_against_the_gate(
    found: Sequence[Written], scores: dict[str, list[Floats]], loss: float
) -> tuple[float, float, float]:
    """Return the ratio at one loss, and the ends of its 95 % interval, completions drawn again."""
    rng = np.random.default_rng(0)
    ratios = []
    for number in range(_NUM_RESAMPLED + 1):
        everyone = list(range(len(found)))
        drawn = rng.choice(everyone, len(found)).tolist() if number else everyone
        some = [found[at] for at in drawn]
        runs = {}
        for way, of_all in scores.items():
            these = [of_all[at] for at in drawn]
            mosts = [_most(some, these, loss)] * len(some)
            runs[way] = tried(some, these, mosts)["layer runs, of all"]
        ratios.append(runs["stop"] / runs["gate"])
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return ratios[0], float(low), float(high)


def plotted(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what is stopped before half against what is lost."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [row for row in rows if row["way"] == way]
        x, y = ([100 * row[name] for row in points] for name in ("loss", "before half, of wrong"))
        axes.plot(x, y, marker="o", label=way)
    axes.set_xlabel("right first lines lost, %")
    axes.set_ylabel("wrong ones stopped before half, %")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
