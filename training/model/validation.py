"""Figures on held-out middles while a run goes on: loss, top-1, and how the exits agree."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batches import Batch
from .decoder import Model
from .loss import EXITS
from .processes import Processes

_CHUNK = 8192  # positions whose logits exist at a time


@torch.no_grad()
def held_figures(model: Model, held: list[Batch], processes: Processes) -> dict[str, float]:
    """Return figures over all processes' held-out batches.

    Returns:
        "n" middle tokens; "lossL" of each layer L; "topL" of the last layer, the share of tokens
        it finds; "sameL" of the exits, the share of tokens where they find what the last does.
    """
    layers = (model.shape.num_layers, *reversed(EXITS))
    total = torch.zeros(len(layers), 4, dtype=torch.float64)
    for batch in held:
        batch = batch.to(processes.device)
        hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, set(layers))
        for a in range(0, batch.num_middle, _CHUNK):
            b = min(a + _CHUNK, batch.num_middle)
            where = batch.selected[a:b]
            states = [hidden[layer][where] for layer in layers]
            total += _sums(model, states, batch.targets[a:b])
    num, *_ = processes.sum(total)[0].tolist()
    figures: dict[str, float] = {"n": int(num)}
    for layer, (n, nll, right, same) in zip(layers, total.tolist(), strict=True):
        figures[f"loss{layer}"] = round(nll / max(n, 1), 4)
        name, count = ("top", right) if layer == layers[0] else ("same", same)
        figures[f"{name}{layer}"] = round(count / max(n, 1), 4)
    return figures


def _sums(model: Model, states: list[Tensor], targets: Tensor) -> Tensor:
    """Return (layers, 4): rows, their loss, how many are right, how many as the first layer's."""
    rows: list[list[float]] = []
    first = None
    for state in states:
        logits = model.logits(state).float()
        nll = torch.logsumexp(logits, -1) - logits.gather(1, targets[:, None])[:, 0]
        top = logits.argmax(-1)
        first = top if first is None else first
        right, same = (top == targets).sum(), (top == first).sum()
        rows.append([len(targets), float(nll.sum()), float(right), float(same)])
    return torch.tensor(rows, dtype=torch.float64)
