"""The ways to compute a completion's tokens that `depth.py` compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from keyturn.engine.exits.controller import ExitRule, Exits
from keyturn.engine.generation.draft import DraftRecord, OwnDrafts
from keyturn.engine.generation.skipping import Schedule, exit_depths, skip_decode
from keyturn.engine.loaded_model import Model


class Method(NamedTuple):
    """One way to compute tokens.

    Attributes:
        depth: that is asked for.
        record: how the record of drafts begins.
        fast: what "fast" saves by; None: what the model has.
    """

    depth: str
    record: DraftRecord
    fast: Exits | Callable[[int], bytes] | None = None


def methods(model: Model, exits: Mapping[str, ExitRule]) -> dict[str, Method]:
    """Return what is compared, the baseline first; each with a record of its own.

    Args:
        model: the model.
        exits: others than it has, by name.
    """
    num_layers = model.decoder.config.num_layers

    def layers(of_thirty: int) -> int:
        return max(1, round(num_layers * of_thirty / 30))

    def drafted_by(*sources: str) -> DraftRecord:
        return DraftRecord(sources=frozenset(sources))

    # Whatever it gains: otherwise it would be left out where it gains nothing.
    whatever = OwnDrafts(gain=math.inf)
    compared = {
        "plain": Method("full", DraftRecord()),
        "lookup": Method("exact", drafted_by("lookup")),
        "first layers": Method("exact", replace(drafted_by("exits"), exits=whatever)),
        "exact": Method("exact", drafted_by("lookup", "exits")),
        "fast": Method("fast", DraftRecord()),
        # Which layers a token is not put through depends on its number alone.
        "falling exits": Method(
            *("fast", DraftRecord(), exit_depths(num_layers, {0: num_layers, 4: layers(22)})),
        ),
        # The embedded model's layer 22 alone is as often right as the last.
        "22 layers": Method(
            *("fast", DraftRecord(), exit_depths(num_layers, {0: num_layers, 1: layers(22)})),
        ),
        "one exit": Method(*("fast", DraftRecord(), exit_depths(num_layers, {0: layers(22)}))),
        "SkipDecode": Method(
            *("fast", DraftRecord()),
            skip_decode(num_layers, warm_up=layers(6), least=layers(26), over=16),
        ),
    }
    for name, rule in exits.items():
        compared[f"exits of {name}"] = Method("fast", DraftRecord(), Exits(rule, model.decoder))
    if model.skips:
        # The same set for all languages.
        fixed = Schedule(((0, next(iter(model.skips.values()))),))
        compared |= {
            "skip set": Method("exact", replace(drafted_by("skips"), skips=replace(whatever))),
            "exact, skip set too": Method("exact", DraftRecord()),
            "fast by skip set": Method("fast", DraftRecord(), fixed),
        }
    for name, each in list(compared.items()):
        if each.depth == "fast":
            compared[f"{name} without drafts"] = each._replace(record=drafted_by())
    return compared
