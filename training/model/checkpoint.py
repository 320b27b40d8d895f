"""Checkpoints of a run: masters and progress in one file, momenta in another beside it.

The masters alone (checkpoint.pt, final.pt) are what other scripts take; without the momenta, or
with those of another step, a run goes on all the same and they are warm after some twenty steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .optimiser import Optimiser

CHECKPOINT, MOMENTA, FINAL, DONE = "checkpoint.pt", "momenta.pt", "final.pt", "DONE"


def save(folder: Path, name: str, optimiser: Optimiser, **state: float) -> None:
    """Write FOLDER/NAME, whole or not at all.

    Args:
        folder: of the run.
        name: CHECKPOINT, with the momenta beside it, or FINAL.
        optimiser: owns the masters.
        state: what else the file holds, `step` among it.
    """
    if name == CHECKPOINT:
        _write(folder / MOMENTA, {"step": state["step"], **optimiser.momenta()})
    _write(folder / name, {"model": optimiser.state(), **state})


def load(folder: Path) -> dict[str, Any]:
    """Return the checkpoint of a run: "model" and what `save` was given."""
    return torch.load(folder / CHECKPOINT, map_location="cpu")


def load_momenta(folder: Path, step: int, optimiser: Optimiser) -> bool:
    """Give the optimiser the momenta of that step; return whether they were there."""
    path = folder / MOMENTA
    saved = torch.load(path, map_location="cpu") if path.exists() else {"step": None}
    if saved["step"] == step:
        optimiser.load_momenta(saved)
    return saved["step"] == step


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    temporary.rename(path)
