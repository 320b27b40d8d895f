"""From observed rows to an exit's classifier, and to a threshold that keeps a stated risk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..exits.controller import ExitPoint, features
from .observe import Observed

# Of squared weights, in the loss: those of the state's entries, of which there are as many as
# observations of some outcomes, and those of how sure the head is.
_STATE_PENALTY, _SURE_PENALTY = 1e-2, 1e-4
_MOST_STEPS = 120


def fit_point(rows: Sequence[Observed], number: int, depth: int) -> ExitPoint:
    """Train one exit by logistic regression; it lets nothing leave yet.

    Args:
        rows: what was observed.
        number: of the exit among those observed.
        depth: its layers.
    """
    states = np.concatenate([each.states[number] for each in rows])
    sure = np.concatenate([each.sure[number] for each in rows])
    looked_at = features(torch.from_numpy(states), torch.from_numpy(sure))
    truth = [(each.guesses[number] == each.final, each.final != each.tokens) for each in rows]
    labels = np.concatenate([np.stack(each, 1) for each in truth]).astype(np.float32)
    weights = torch.zeros(2, looked_at.shape[1], requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    penalty = torch.full((looked_at.shape[1],), _STATE_PENALTY)
    penalty[-sure.shape[1] :] = _SURE_PENALTY
    wanted = torch.from_numpy(labels)
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimiser.zero_grad()
        odds = torch.addmm(bias, looked_at, weights.t())
        missed = torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted)
        total = 2 * missed + (penalty * weights.square()).sum()
        total.backward()
        return float(total.detach())

    optimiser.step(loss)
    return ExitPoint(depth, weights.detach(), bias.detach(), math.inf)


def least_sure(
    probability: NDArray[np.floating], is_right: NDArray[np.bool_], risk: float, doubt: float
) -> float:
    """Return the lowest threshold at which what leaves wrongly is too rare, or infinity.

    Learn then test (arXiv 2110.01052, section 3): thresholds are tested in a fixed sequence, the
    strictest first, for whether the share of all tokens that leave and are wrong may be above
    `risk`; the first that does not rule that out ends it.

    Args:
        probability: (n,) with which each token would leave.
        is_right: (n,) whether it would be the one after all layers.
        risk: the share that is allowed.
        doubt: the probability with which this may fail.
    """
    order = np.argsort(-probability, kind="stable")
    wrong = np.cumsum(~is_right[order])
    lowest = math.inf
    for threshold in np.arange(0.995, 0.5, -0.005):
        leaving = int(np.searchsorted(-probability[order], -threshold, side="right"))
        num_wrong = int(wrong[leaving - 1]) if leaving else 0
        if _binomial_tail(num_wrong, len(probability), risk) > doubt:
            break
        lowest = float(threshold)
    return lowest


def _binomial_tail(most: int, count: int, share: float) -> float:
    """Return the probability of at most so many of `count` events of that probability."""
    log_terms = [
        math.lgamma(count + 1)
        - math.lgamma(at + 1)
        - math.lgamma(count - at + 1)
        + at * math.log(share)
        + (count - at) * math.log1p(-share)
        for at in range(most + 1)
    ]
    return min(1.0, sum(map(math.exp, log_terms)))
