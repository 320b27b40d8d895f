"""First lines that a model writes at held-out places, greedily, and how sure it was of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..data.documents import LANGUAGES
from ..data.layouts import END, FIRST, LAYOUTS
from ..data.shards import read_shards
from ..model.decoder import Model
from .calibration import calibration
from .greedy import greedy

MAX_NEW = 72  # tokens of an answer


def held_lines(
    model: Model,
    tokenizer: Tokenizer,
    folder: Path,
    layout: str,
    most: int,
    batch_size: int,
    candidates: int = 1,
) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Return how often the first line is exactly the true one, by language, with standard errors.

    Args:
        model: on its device.
        tokenizer: its tokenizer.
        folder: of held-out shards.
        layout: one of `layouts.LAYOUTS`; other samples are left out.
        most: places at most, always the same ones.
        batch_size: places decoded together.
        candidates: lines to write of each place: the others take the second likeliest token where
            that is likeliest, much as the product's do (`engine/generation/candidates.py`).

    Returns:
        Figures, the calibration of the first line's joint probability among them; and for each
        place "exact" bool, "probability" float32 and "language" uint8, and of several candidates
        "any" bool, whether one is exact.
    """
    shards = read_shards(sorted(folder.glob("p*.npz")))
    fits = np.flatnonzero(shards.columns["layout"] == LAYOUTS.index(layout))
    fits = np.random.default_rng(7).permutation(fits)[:most].tolist()
    cuts = [int(np.flatnonzero(shards.sample(i)[1] == FIRST)[0]) for i in fits]
    order = np.argsort(cuts).tolist()  # those of a length together
    breaks = ["\n" in tokenizer.decode([i]) for i in range(model.shape.vocabulary)]
    halt = torch.tensor(breaks, device=model.embedding.device)
    depth = model.shape.num_layers
    exact, probability = np.zeros(len(fits), bool), np.zeros(len(fits), np.float32)
    any_exact = np.zeros(len(fits), bool)

    def line(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False).split("\n")[0].strip()

    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        tokens = [shards.sample(fits[i])[0].tolist() for i in part]
        prompts = [ids[: cuts[i]] for i, ids in zip(part, tokens, strict=True)]
        true = [line(ids[cuts[i] : -1]) for i, ids in zip(part, tokens, strict=True)]
        first = greedy(model, prompts, MAX_NEW, depth, halt=halt, num_forks=candidates - 1)
        exact[part] = [line(ids) == goal for ids, goal in zip(first.ids, true, strict=True)]
        any_exact[part] = exact[part]
        probability[part] = np.exp(first.logs)
        begun = [(row, fork) for row, forks in enumerate(first.forks) for fork in forks]
        for at in range(0, len(begun), batch_size):
            some = begun[at : at + batch_size]
            more = greedy(
                model, [prompts[row] + fork for row, fork in some], MAX_NEW, depth, halt=halt
            )
            for (row, fork), ids in zip(some, more.ids, strict=True):
                whole = [*fork, *ids, END]
                any_exact[part[row]] |= line(whole[: whole.index(END)]) == true[row]
    languages = shards.columns["language"][fits]
    figures: dict[str, Any] = {"n": len(fits), **_share(exact)}
    places = {"exact": exact, "probability": probability}
    if candidates > 1:
        places["any"] = any_exact
        figures[f"any_of_{candidates}"] = _share(any_exact)
    for number, name in enumerate(LANGUAGES):
        if len(mine := exact[languages == number]):
            figures[name] = {"n": len(mine), **_share(mine)}
    found = calibration(probability, exact)
    figures["ece_joint"] = round(found.error, 4)
    figures["ece_joint_se"] = round(found.standard_error, 4)
    figures["bins_joint"] = found.bins
    return figures, places | {"language": languages}


def _share(right: NDArray[np.bool_]) -> dict[str, float]:
    p = float(right.mean()) if len(right) else 0.0
    return {"exact": round(p, 4), "se": round((p * (1 - p) / max(1, len(right))) ** 0.5, 4)}
