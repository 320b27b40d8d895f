#!/usr/bin/env python3
r"""Fit what each pool of data is worth, and how fast repeating it loses that; choose a mix.

    python -m training.mix_fit runs.json --tokens 1800e6 --pool python=420e6 --pool script=140e6

After "Scaling Laws for Data Filtering" (arXiv 2404.07177, sections 3 and 4): the loss above its
floor falls with the tokens seen as a power law whose exponent, the utility b of a pool, shrinks
with every repeat by 2^(-1/tau), tau being its half-life in epochs; a mix has the weighted mean of
its pools' exponents. As training goes on from a model, n0 tokens count as seen before; and as the
rate first rises, which costs a trained model something, the loss falls from above where it was, as
the fit finds. A pool may harm a loss: then its exponent is negative.

runs.json: [{"tokens": 19e6, "pools": {"python": [share, repeats], ...}, "loss": {"py": 1.2, ...}}].
One run, marked "held_out": true, is predicted and not fitted. `ablate.py` writes the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Run = dict[str, Any]
_STARTS, _STEPS = 3, 150
_PRIOR = 1e-4  # keeps what the runs do not tell near where it began


class Law(NamedTuple):
    """The law of one loss.

    Attributes:
        pools: names.
        utility: (pools,) b of each.
        half_life: (pools,) tau, in epochs.
        floor: the loss that no amount of data undercuts.
        seen: n0, tokens that count as seen before.
        start: the loss from which it falls.
    """

    pools: tuple[str, ...]
    utility: Tensor
    half_life: Tensor
    floor: Tensor
    seen: Tensor
    start: Tensor

    def loss(self, tokens: float, shares: Tensor, repeats: Tensor) -> Tensor:
        """Return the loss after so many tokens of a mix.

        Args:
            tokens: in all, repeats included.
            shares: (pools,) of them.
            repeats: (pools,) whole or broken number of epochs over what is in it of each pool.
        """
        last = max(1, int(torch.ceil(repeats.max() - 1e-9)))
        log_gain = torch.zeros((), dtype=torch.float64)
        n = self.seen
        for epoch in range(last):
            # What the pools give in their epoch of this number, and what that is worth by now.
            part = (repeats - epoch).clamp(0, 1) / repeats.clamp(min=1e-9)
            given = shares * part * tokens
            decay = 0.5 ** (epoch / self.half_life)
            after = n + given.sum()
            mean = (given * self.utility * decay).sum() / given.sum().clamp(min=1e-9)
            log_gain = log_gain - mean * torch.log(after / n)
            n = after
        return self.floor + (self.start - self.floor) * torch.exp(log_gain)


def _law(x: Tensor, pools: tuple[str, ...], start: float) -> Law:
    p = len(pools)
    return Law(
        pools,
        0.2 * x[:p],
        2 * torch.exp(x[p : 2 * p]),
        start * 0.5 * torch.sigmoid(x[2 * p]),
        5e7 * torch.exp(x[2 * p + 1]),
        start * (1 + 0.2 * torch.sigmoid(x[2 * p + 2])),
    )


def of_run(run: Run, pools: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the shares and repeats of a run's pools."""
    found = [run["pools"].get(name, (0.0, 1)) for name in pools]
    shares, repeats = torch.tensor(found, dtype=torch.float64).T
    return shares / shares.sum(), repeats


def fit(runs: list[Run], name: str, start: float) -> Law:
    """Fit the law of one loss.

    Args:
        runs: at least as many as there are pools.
        name: of the loss.
        start: the loss before training, without a raised rate.

    Raises:
        ValueError: too few runs.
    """
    pools = tuple(sorted({pool for run in runs for pool in run["pools"]}))
    if len(runs) < len(pools):
        raise ValueError(f"{len(runs)} runs tell nothing about {len(pools)} pools")
    wanted = torch.tensor([run["loss"][name] for run in runs], dtype=torch.float64)
    mixes = [(float(run["tokens"]), *of_run(run, pools)) for run in runs]
    best: tuple[float, Tensor] | None = None
    for seed in range(_STARTS):
        torch.manual_seed(seed)
        begin = torch.zeros(2 * len(pools) + 3, dtype=torch.float64)
        begin[: len(pools)], begin[-1] = 1.0, -2.2  # a start two hundredths above the measured one
        x = (begin + 0.7 * torch.randn_like(begin)).requires_grad_()
        solver = torch.optim.LBFGS([x], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def miss(x: Tensor = x, begin: Tensor = begin) -> Tensor:
            law = _law(x, pools, start)
            found = torch.stack([law.loss(*mix) for mix in mixes])
            # Of how the runs differ: what they have in common tells nothing.
            scale = wanted.std(correction=0).clamp(min=1e-6)
            return ((found - wanted) / scale).pow(2).mean() + _PRIOR * (x - begin).pow(2).mean()

        def closure(solver: Any = solver, miss: Any = miss) -> Tensor:  # noqa: ANN401
            solver.zero_grad()
            loss = miss()
            loss.backward()
            return loss

        solver.step(closure)
        with torch.no_grad():
            value = float(miss())
        if value == value and (best is None or value < best[0]):
            best = value, x.detach().clone()
    assert best is not None, "one start at least gives numbers"
    return _law(best[1], pools, start)


def choose(
    laws: dict[str, Law], tokens: float, sizes: dict[str, float], step: float = 0.05
) -> tuple[dict[str, float], float]:
    """Return the shares with the lowest mean predicted loss, and that loss.

    Args:
        laws: of each loss.
        tokens: of the run.
        sizes: tokens there are of each pool, once.
        step: of the grid of shares.
    """
    pools = next(iter(laws.values())).pools
    size = torch.tensor([sizes[name] for name in pools], dtype=torch.float64)
    count, best = round(1 / step), None
    for cuts in itertools.product(range(count + 1), repeat=len(pools) - 1):
        if sum(cuts) > count:
            continue
        parts = [*cuts, count - sum(cuts)]
        shares = torch.tensor(parts, dtype=torch.float64) / count
        repeats = (shares * tokens / size).clamp(min=1.0)
        loss = float(
            torch.stack([law.loss(tokens, shares, repeats) for law in laws.values()]).mean()
        )
        if best is None or loss < best[1]:
            best = shares, loss
    assert best is not None, "the grid is not empty"
    return dict(zip(pools, best[0].tolist(), strict=True)), best[1]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.mix_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--tokens", type=float, help="of the run whose mix is to be chosen")
    parser.add_argument("--pool", action="append", default=[], metavar="NAME=TOKENS")
    args = parser.parse_args(argv)
    content = json.loads(args.runs.read_text())
    fitted = [run for run in content["runs"] if not run.get("held_out")]
    laws = {name: fit(fitted, name, start) for name, start in content["start"].items()}
    for name, law in laws.items():
        table = {
            pool: {"utility": round(float(b), 4), "half_life_epochs": round(float(t), 2)}
            for pool, b, t in zip(law.pools, law.utility, law.half_life, strict=True)
        }
        print(json.dumps({"loss": name, "floor": round(float(law.floor), 3), "pools": table}))
    for run in content["runs"]:
        for name, law in laws.items():
            found = float(law.loss(float(run["tokens"]), *of_run(run, law.pools)))
            line = {"run": run.get("name", ""), "loss": name, "held_out": bool(run.get("held_out"))}
            print(json.dumps({**line, "predicted": round(found, 4), "seen": run["loss"][name]}))
    if args.tokens:
        sizes = {name: float(size) for name, size in (pool.split("=") for pool in args.pool)}
        shares, loss = choose(laws, args.tokens, sizes)
        print(json.dumps({"shares": shares, "predicted": round(loss, 4)}))


if __name__ == "__main__":
    main()
