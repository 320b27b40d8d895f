"""Figures on held-out middles with the true text fed in, by layer, layout, kind and language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..data.batches import MAX_SAMPLES, PADDING_PIECES, Packing, pack
from ..data.documents import COMPILED_POOL_OF, LANGUAGES
from ..data.layouts import EFIM, END, LAYOUTS, MIDDLE_CLASSES, PLAIN, PSM, SPM
from ..data.shards import Shards, read_shards
from ..data.spans import KINDS
from ..model.decoder import Model
from ..model.loss import EXITS
from .calibration import calibration

LENGTHS = ((0, 500), (500, 1000), (1000, 2049))  # tokens of a sample
SURE = 0.9  # probability from which a guess counts as sure
NLL, TOP, CONFIDENCE = range(3)

Rows = dict[str, NDArray]


def held_out(model: Model, folder: Path, most: int, size: int) -> dict[str, Any]:
    """Return tables over held-out middles.

    Args:
        model: on its device.
        folder: of held-out shards.
        most: tokens to look at.
        size: tokens scored together.
    """
    rows = score_middles(model, folder, most, size)
    layers, last = _layers(model), model.shape.num_layers
    everything = np.ones(len(rows["truth"]), bool)
    out: dict[str, Any] = {"all": summarise(rows, everything, last), "layers": {}}
    out |= {table: {} for table in ("lengths", "kinds", "languages", "reserved")}
    for layer in layers:
        out["layers"][layer] = _of_layer(rows, layer, last)
    last_rows = rows[f"layer{last}"]
    found = calibration(last_rows[:, CONFIDENCE], last_rows[:, TOP] == rows["truth"], 20)
    out["ece_token"], out["ece_token_se"] = round(found.error, 4), round(found.standard_error, 4)
    out["bins_token"] = found.bins
    for table, name, mask in _cells(rows):
        if mask.any():
            out[table][name] = summarise(rows, mask, last)
    return out


@torch.inference_mode()
def score_middles(model: Model, folder: Path, most: int, size: int) -> Rows:
    """Return arrays with a row per middle token.

    "truth", "last" (whether its sample ends there), "sample", the sample's "length", "kind",
    "layout", "language", "reserved", and "layerL": (n, 3) NLL, TOP and CONFIDENCE of layer L.
    """
    shards = read_shards(sorted(folder.glob("p*.npz")))
    parts: list[Rows] = []
    bar = tqdm(total=most, desc=folder.name, unit=" tokens")
    for group in _groups(shards, size):
        parts.append(_score(model, shards, group, size))
        bar.update(int(shards.length[group].sum()))
        if bar.n >= most:
            break
    bar.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarise(rows: Rows, mask: NDArray[np.bool_], last_layer: int) -> dict[str, float]:
    """Return figures of the last layer over some middle tokens."""
    full, truth = rows[f"layer{last_layer}"][mask], rows["truth"][mask]
    last, sample = rows["last"][mask], rows["sample"][mask]
    ends, right = full[:, TOP] == END, full[:, TOP] == truth
    num = int(last.sum())
    return {
        "samples": num,
        "tokens": len(truth),
        "loss": round(float(full[:, NLL].mean()), 4),
        "top1": round(float(right.mean()), 4),
        "end_right": round(float(ends[last].mean()), 4),
        "end_right_se": round(_error(float(ends[last].mean()), num), 4),
        "end_early": round(early := len(np.unique(sample[ends & ~last])) / num, 4),
        "end_early_se": round(_error(early, num), 4),
        # Greedy decoding would be an exact match.
        "all_right": round(1 - len(np.unique(sample[~right])) / num, 4),
    }


def _error(share: float, num: int) -> float:
    """Return the standard error of a share of `num`."""
    return (share * (1 - share) / num) ** 0.5


def _layers(model: Model) -> tuple[int, ...]:
    return (*EXITS, model.shape.num_layers)


def _of_layer(rows: Rows, layer: int, last_layer: int) -> dict[str, float]:
    nll, guess, confidence = rows[f"layer{layer}"].T
    same = guess == rows[f"layer{last_layer}"][:, TOP]
    sure = confidence >= SURE
    return {
        "loss": round(float(nll.mean()), 4),
        "top1": round(float((guess == rows["truth"]).mean()), 4),
        "same": round(float(same.mean()), 4),
        "sure": round(float(sure.mean()), 4),
        "sure_same": round(float(same[sure].mean()), 4) if sure.any() else 0.0,
    }


def _cells(rows: Rows) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield table, name and which rows belong there."""
    for layout in (PSM, SPM, EFIM):
        for a, b in LENGTHS:
            fits = (rows["length"] >= a) & (rows["length"] < b)
            yield "lengths", f"{LAYOUTS[layout]} {a}-{b - 1}", (rows["layout"] == layout) & fits
    for number, kind in enumerate(KINDS):
        yield "kinds", kind, rows["kind"] == number
    for number, language in enumerate(LANGUAGES):
        yield "languages", language, rows["language"] == number
    compiled = np.array([language in COMPILED_POOL_OF for language in LANGUAGES])[rows["language"]]
    is_python = rows["language"] == LANGUAGES.index("py")
    parts = {"python": is_python, "script": ~is_python & ~compiled, "compiled": compiled}
    for name, mine in parts.items():
        for word, flag in (("packages", True), ("files", False)):
            yield "reserved", f"{name} {word}", mine & (rows["reserved"] == flag)


def _groups(shards: Shards, size: int) -> Iterator[list[int]]:
    """Yield samples that fill a batch, always in the same order."""
    group: list[int] = []
    room = size
    for i in np.random.default_rng(7).permutation(len(shards.length)).tolist():
        if shards.columns["layout"][i] == PLAIN or shards.length[i] > size:
            continue
        if shards.length[i] > room or len(group) >= MAX_SAMPLES - PADDING_PIECES:
            yield group
            group, room = [], size
        group.append(i)
        room -= int(shards.length[i])
    if group:
        yield group


def _score(model: Model, shards: Shards, group: list[int], size: int) -> Rows:
    device = model.embedding.device
    samples = [shards.sample(i) for i in group]
    batch = pack(samples, Packing(size, 64), np.random.default_rng(0)).to(device)
    taps = set(_layers(model))
    hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, taps)
    begins = np.concatenate([[0], np.cumsum(shards.length[group])])
    where = [
        begin + np.flatnonzero(np.isin(classes, MIDDLE_CLASSES)) - 1
        for begin, (_, classes) in zip(begins, samples, strict=False)
    ]
    places = torch.from_numpy(np.concatenate(where)).to(device)
    truth = batch.token_ids[places + 1]
    counts = [len(w) for w in where]
    rows = {f"layer{k}": _figures(model, hidden[k][places], truth) for k in _layers(model)}
    columns = {"length": shards.length, **shards.columns}
    rows |= {name: np.repeat(values[group], counts) for name, values in columns.items()}
    rows["truth"] = truth.cpu().numpy()
    rows["last"] = np.concatenate([np.arange(n) == n - 1 for n in counts])
    rows["sample"] = np.repeat(group, counts)
    return rows


def _figures(model: Model, states: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Return (n, 3): NLL, TOP and CONFIDENCE."""
    out = []
    for part, want in zip(states.split(4096), truth.split(4096), strict=True):
        logits = model.logits(part).float()
        lse, (best, top) = logits.logsumexp(-1), logits.max(-1)
        nll = lse - logits.gather(1, want[:, None])[:, 0]
        out.append(torch.stack([nll, top.float(), (best - lse).exp()], 1))
    return torch.cat(out).double().cpu().numpy()
