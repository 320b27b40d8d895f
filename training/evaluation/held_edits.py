"""What a turned cache costs: held-out middles over it, and over a fresh one, in the same pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.batches import Packing, pack
from ..data.shards import read_shards
from ..data.turned import MAX_TURNED
from ..model.decoder import Model

_LEAST_ROWS = 4  # stale rows behind the edit; with fewer there is nothing to be told


def held_edits(
    model: Model, folder: Path, size: int, most: int
) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Return how far the distribution over a turned cache is from that over a fresh one.

    Args:
        model: on its device.
        folder: of held-out shards made with `prepare --edited 1`.
        size: tokens in a pass.
        most: edited samples at most.

    Returns:
        Figures: KL(fresh || turned) in nats and the share of tokens with the same top-1, as means
        over the samples with standard errors, and the loss of the true tokens over either; and
        for each sample "kl", "same", "loss_fresh", "loss_turned", (n,) float32.
    """
    shards = read_shards(sorted(folder.glob("p*.npz")))
    chosen = [i for i, edit in enumerate(shards.edits) if edit is not None and _is_stale(edit)]
    chosen = np.random.default_rng(7).permutation(chosen).tolist()[:most]
    if not chosen:
        raise ValueError(f"{folder} has no edited samples; make it with prepare --edited 1")
    rows: list[NDArray] = []
    group: list[int] = []
    room = size
    for i in tqdm([*chosen, -1], "edits", unit=" samples"):
        edit = shards.edits[i]
        need = 0 if edit is None or i < 0 else len(edit.sources) + len(edit.old) + edit.num_anew
        if group and (i < 0 or need > room or len(group) == MAX_TURNED):
            rows.append(_score(model, shards, group, size))
            group, room = [], size
        if i >= 0 and need <= size:
            group.append(i)
            room -= need
    if not rows:
        raise ValueError(f"no edited sample of {folder} fits {size} tokens; use a larger --size")
    names = ("kl", "same", "loss_fresh", "loss_turned")
    found: dict[str, NDArray] = dict(zip(names, np.concatenate(rows).T, strict=True))
    figures: dict[str, Any] = {"n": len(found["kl"])}
    for name, values in found.items():
        figures[name] = round(float(values.mean()), 5)
        figures[f"{name}_se"] = round(float(values.std() / max(1, len(values)) ** 0.5), 5)
    return figures, found


def _is_stale(edit: Any) -> bool:  # noqa: ANN401
    """Return whether rows behind the first computed anew are served by old ones."""
    first = int(np.flatnonzero(edit.sources < 0)[0])
    return int((edit.sources[first:] >= 0).sum()) >= _LEAST_ROWS


@torch.inference_mode()
def _score(model: Model, shards: Any, group: list[int], size: int) -> NDArray:  # noqa: ANN401
    """Return (samples, 4): KL, agreement, and the losses, each a mean over a middle's tokens."""
    device, last = model.embedding.device, model.shape.num_layers
    samples = [shards.sample(i) for i in group]
    edits = [shards.edits[i] for i in group]
    packing = Packing(size, 2 * size, size)  # all pairs have room
    batch = pack(samples, packing, np.random.default_rng(0), edits).to(device)
    turned = batch.turned
    assert turned is not None, "there are edits"
    place = (batch.token_ids, batch.positions, batch.bounds)
    hidden = model.hidden(*place, {last}, turned)[last]
    live = int((turned.weights > 0).sum())
    rows, sample = batch.selected[:live], batch.sample[:live]
    sums = torch.zeros(len(group), 5, device=device)
    for part in torch.arange(live, device=device).split(2048):
        fresh = model.logits(hidden[rows[part]]).float().log_softmax(-1)
        other = model.logits(hidden[turned.rows[part]]).float().log_softmax(-1)
        target = batch.targets[part][:, None]
        figures = [
            (fresh.exp() * (fresh - other)).sum(-1).clamp(min=0),
            (fresh.argmax(-1) == other.argmax(-1)).float(),
            -fresh.gather(1, target)[:, 0],
            -other.gather(1, target)[:, 0],
            torch.ones(len(part), device=device),
        ]
        sums.index_add_(0, sample[part], torch.stack(figures, 1))
    sums = sums[sums[:, 4] > 0]
    return (sums[:, :4] / sums[:, 4:]).cpu().numpy().astype(np.float32)
