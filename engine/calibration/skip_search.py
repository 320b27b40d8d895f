"""The search for sub-layers that a draft may leave out.

SWIFT (arXiv 2410.06916, section 4.1) scores a set by how often the model without it has the same
likeliest token, in one pass over text that is known, and proposes sets at random and by Bayesian
optimisation. Here the surrogate is linear, as BOCS has it (Baptista and Poloczek, arXiv 1806.08838,
section 3): each sub-layer takes its own part off the logarithm of the agreement. A proposal is what
costs least in a draw from the posterior (Thompson sampling), all of it in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.decoder import Check
from ..session import Session

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Of sets that are tried, those drawn at random, before there is anything to go by.
_RANDOM_SHARE = 0.4
# Rows of each place; standard deviations of a sub-layer's part and of what the parts leave open.
_ROWS_EACH, _SPREAD, _NOISE = 64, 0.02, 0.02
_LEAST = 0.6  # agreement; of what is less nothing is learnt but that it is bad


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says of n known tokens.

    Attributes:
        likeliest: (n,) tokens.
        probability: (n,) that it gives them.
        loss: (n,) nats of the tokens that stand there.
    """

    likeliest: NDArray[np.int64]
    probability: Floats
    loss: Floats


class KnownText:
    """The last rows of some prompts: teacher forcing, with some sub-layers left out or without."""

    def __init__(self, sessions: Iterable[Session], check: Check) -> None:
        """Take sessions whose prompts are there; they are not to be used for anything else."""
        self._check = check
        self._parts: list[tuple[Session, NDArray[np.int64], Tensor]] = []
        for session in sessions:
            order = session.prompt.rows.by_position()[-_ROWS_EACH - 1 :]
            following = session.prompt.rows.token_ids[order[1:]].astype(np.int64)
            self._parts.append((session, order[:-1].copy(), torch.from_numpy(following)))
        self.full = self.said(None)

    def said(self, skipped: bytes | None) -> Said:
        """Return what the model says without what is skipped, as for `Rows`."""
        found = []
        for session, slots, following in self._parts:
            decoder = session.model.decoder
            hidden = decoder.forward(session.prompt.rows, slots, self._check, skipped=skipped)
            log_probs = decoder.logits(hidden).log_softmax(-1).cpu()
            top = log_probs.max(-1)
            loss = -log_probs.gather(1, following[:, None])[:, 0]
            found.append((top.indices.numpy(), top.values.exp().numpy(), loss.numpy()))
        return Said(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def agrees(self, said: Said) -> Bools:
        """Return of which tokens the likeliest is that of all layers."""
        return said.likeliest == self.full.likeliest


def search(
    text: KnownText, num_layers: int, num_skipped: int, num_tried: int, seed: int
) -> Iterator[tuple[bytes, Said]]:
    """Yield sets of so many sub-layers as they are tried, and what is said without them.

    The first that is tried is an early exit, the last sub-layers; the others leave the first and
    the last layer, as SWIFT's do.

    Args:
        text: what they are tried on.
        num_layers: of the model.
        num_skipped: sub-layers of a set, attention and MLP each by itself.
        num_tried: sets, at most.
        seed: of the search.
    """
    rng = np.random.default_rng(seed)
    count = 2 * (num_layers - 2)
    early_exit = as_bytes(range(2 * num_layers - num_skipped, 2 * num_layers), num_layers)
    yield early_exit, text.said(early_exit)
    num_tried = min(num_tried - 1, math.comb(count, num_skipped))
    tried: set[bytes] = set()
    chosen, losses = np.zeros((0, count)), np.zeros(0)
    while len(tried) < num_tried:
        cost = rng.random(count)
        if len(tried) >= _RANDOM_SHARE * num_tried:
            cost = _drawn(chosen, losses, rng)
        members = np.argsort(cost)[:num_skipped]
        skipped = as_bytes(members + 2, num_layers)
        if skipped in tried:  # sure of the best: one sub-layer of it is exchanged for another
            others = np.setdiff1d(np.arange(count), members)
            members[rng.integers(num_skipped)] = others[rng.integers(len(others))]
            skipped = as_bytes(members + 2, num_layers)
        if skipped in tried:
            continue
        tried.add(skipped)
        said = text.said(skipped)
        yield skipped, said
        row = np.zeros((1, count))
        row[0, members] = 1
        chosen = np.concatenate([chosen, row])
        agreement = max(float(text.agrees(said).mean()), _LEAST)
        losses = np.append(losses, -np.log(agreement))


def _drawn(chosen: Floats, losses: Floats, rng: np.random.Generator) -> Floats:
    """Return a draw of what each sub-layer takes off: Bayesian linear regression, normal noise.

    Args:
        chosen: (m, n) of m sets, 1 for what is left out.
        losses: (m,) what each set has taken off.
        rng: draws.
    """
    expected = losses.sum() / chosen.sum()
    precision = chosen.T @ chosen / _NOISE**2 + np.eye(chosen.shape[1]) / _SPREAD**2
    covariance = np.linalg.inv(precision)
    mean = (
        expected
        + covariance
        @ (chosen.T @ (losses - chosen @ np.full(chosen.shape[1], expected)))
        / _NOISE**2
    )
    return rng.multivariate_normal(mean, covariance)


def as_bytes(sub_layers: Iterable[int], num_layers: int) -> bytes:
    """Return numbers of sub-layers, two in a layer, attention first, as `Rows` has them."""
    skipped = bytearray(num_layers)
    for number in sub_layers:
        skipped[int(number) // 2] |= 1 << int(number) % 2
    return bytes(skipped)
