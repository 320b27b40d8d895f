"""From source code to a model's exits: draws places, observes them, trains and chooses.

One exit is chosen, that which saves most at the risk. (With more of them, further down, what is
made up for rows that left costs about as much as they save.) Where filling in is asked for, those
are chosen that save most together, and what is filled in for rows that left is learnt of the rows
of some prompts: far fewer layers, and more completions that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine import Engine
from ..exits.controller import ExitPoint, ExitRule
from ..model.config import ModelConfig
from ..model.decoder import Check
from ..prompt.growing_window import ColdLimit
from ..session import Session
from ..wire.errors import BadRequest
from .fill_fit import FillFit, add_rows
from .fit import fit_point, least_sure
from .observe import Observed, observe
from .places import Place, draw, source_files

# So many tokens an exit can write: of those in 22 MB of code 97.6 % of what is written.
NUM_TOKENS = 8192
# Of the layers; exits that leave more than two fifths are far from what all say. Where rows are
# filled in, those are tried that the embedded model was trained to exit after.
_SHARES = (18 / 30, 22 / 30, 26 / 30)
_FILLED_SHARES = (6 / 30, 14 / 30, 22 / 30, 26 / 30)
# Directions of a state that what it lacks is filled in from, and prompts that this is learnt of.
_RANK, _NUM_PROMPTS = 256, 40
# Text that tokens are counted in, rows before the cursor, places whose every layer is asked, and
# those that must be found.
_COUNTED_CHARS, _ROWS, _NUM_TABLED, _FEWEST = 4_000_000, 512, 40, 20
_DOUBT = 0.05


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was learnt.

    Attributes:
        rule: its exits.
        num_places: places that were observed.
        num_tokens: tokens there.
        shares_leaving: of the tokens that were kept from training, those that leave at each exit.
        share_wrong: of the same, those that leave with another token than all layers give.
        final: (num_layers,) of tokens, the share whose likeliest is already the last layer's.
    """

    rule: ExitRule
    num_places: int
    num_tokens: int
    shares_leaving: tuple[float, ...]
    share_wrong: float
    final: NDArray[np.float64]

    def report(self) -> str:
        """Return the figures for people."""
        exits = [
            f"exit after layer {point.depth} of {self.rule.last} where it is {point.exit_at:.1%} "
            f"sure: {share:.0%} of the tokens leave there"
            for point, share in zip(self.rule.points, self.shares_leaving, strict=True)
        ]
        return "\n".join(
            [
                "layers  tokens whose likeliest is that of all layers",
                *(f"{at + 1:6}  {share:.1%}" for at, share in enumerate(self.final)),
                f"{self.num_tokens} tokens of {self.num_places} places",
                *exits,
                f"of all tokens, {self.share_wrong:.2%} leave as others than all layers give",
                "",
            ]
        )


def calibrate(
    engine: Engine,
    model: str,
    paths: Sequence[str],
    *,
    risk: float,
    num_places: int,
    fills_in: bool,
    check: Check,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibrated:
    """Train a model's exits on source code.

    Args:
        engine: runs the model.
        model: its name.
        paths: files or folders of source code.
        risk: of all tokens, so many may leave and be others than all layers would give behind the
            same rows; kept with a probability of 95 %, on places like those. What is filled in for
            rows that left comes on top of it.
        num_places: places that are drawn, at most.
        fills_in: what rows lack that left is filled in, not made up; then there may be several
            exits.
        check: called between layers.
        progress: receives how many places are done, and of how many.

    Raises:
        BadRequest: there is too little code, or no exit keeps the risk.
        ModelNotFound, ModelLoadError, OutOfMemory.
    """
    loaded = engine.load(model)
    files = source_files(paths, loaded.languages)
    places = draw(files, num_places, seed=0)
    if len(places) < _FEWEST:
        raise BadRequest(
            f"only {len(places)} places to learn from under {', '.join(paths)}; give folders with "
            "more source code"
        )
    decoder, num_layers = loaded.decoder, loaded.decoder.config.num_layers
    token_ids = _commonest(engine, model, files)
    head = decoder.head_over(token_ids)
    shares = _FILLED_SHARES if fills_in else _SHARES
    depths = sorted({round(share * num_layers) for share in shares} & set(range(1, num_layers)))
    most_exits = len(depths) if fills_in else 1
    found: list[Observed] = []
    final, num_tabled = np.zeros(num_layers), 0
    fills = [FillFit() for _ in depths]
    for number, (place, session) in enumerate(_opened(engine, model, places)):
        heads = [(head, token_ids)] * len(depths)
        observed = observe(session, place, depths, heads, check)
        if observed is not None:
            found.append(observed)
            if number < _NUM_TABLED:
                final += _final(session, place, check)
                num_tabled += len(observed.tokens)
        if fills_in and number < _NUM_PROMPTS:
            add_rows(fills, depths, session.prompt, check)
        progress(number + 1, len(places))
    # By file: what a file says once it says again.
    names = sorted({each.place.path for each in found})
    by_path = len(names) > 1
    held_back = [
        (names.index(each.place.path) if by_path else at) % 2 == 1 for at, each in enumerate(found)
    ]
    learnt = [each for each, is_back in zip(found, held_back, strict=True) if not is_back]
    tested = [each for each, is_back in zip(found, held_back, strict=True) if is_back]
    of_head = _head_in_layers(decoder.config) * (1 - len(token_ids) / decoder.config.vocab_size)
    points, sure, right = [], [], []
    for number, depth in enumerate(depths):
        point = fit_point(learnt, number, depth)
        probability, is_right = _tried(point, number, tested)
        # Wherever all of them are right, none of those that are chosen is wrong.
        exit_at = least_sure(probability, is_right, risk / most_exits, _DOUBT / most_exits)
        points.append(replace(point, exit_at=exit_at))
        sure.append(probability >= exit_at)
        right.append(is_right)
    asking = _head_in_layers(decoder.config) * len(token_ids) / decoder.config.vocab_size
    whole = num_layers + of_head
    # Where asking costs as much as it saves, fewer layers are what was asked for all the same.
    chosen = most_saved(depths, sure, whole, asking, most_exits)
    chosen = chosen or most_saved(depths, sure, whole, 0.0, most_exits)
    num_tokens = sum(len(each.tokens) for each in found)
    if not chosen:
        raise BadRequest(
            f"no exit keeps the risk {risk:g} on {num_tokens} tokens; give more source code, or a "
            "higher risk"
        )
    left = np.zeros(len(sure[0]), dtype=bool)
    shares_leaving, num_wrong = [], 0
    for at in chosen:
        leaves = sure[at] & ~left
        shares_leaving.append(float(leaves.mean()))
        num_wrong += int((leaves & ~right[at]).sum())
        left |= leaves
    rule = ExitRule(
        tuple(
            replace(points[at], fill=fills[at].solve(_RANK) if fills_in else None) for at in chosen
        ),
        *(token_ids, num_layers),
        made_up=0 if fills_in else num_layers,
    )
    return Calibrated(
        *(rule, len(found), num_tokens, tuple(shares_leaving)),
        share_wrong=num_wrong / len(left),
        final=final / max(1, num_tabled),
    )


def most_saved(
    depths: Sequence[int], sure: Sequence[NDArray[np.bool_]], whole: float, asking: float, most: int
) -> tuple[int, ...]:
    """Return which exits together save most; () if none saves anything.

    Args:
        depths: of the exits, ascending.
        sure: of each exit, (n,) whether a token would leave there.
        whole: what a token costs that leaves nowhere, in layers.
        asking: what it costs to ask an exit.
        most: exits, at most.
    """
    best, most_saved = (), 0.0
    for count in range(1, most + 1):
        for some in combinations(range(len(depths)), count):
            goes = np.ones(len(sure[0]), dtype=bool)
            saved = 0.0
            for at in some:
                saved += float((goes & sure[at]).mean()) * (whole - depths[at])
                saved -= float(goes.mean()) * asking
                goes &= ~sure[at]
            if saved > most_saved:
                best, most_saved = some, saved
    return best


def _commonest(engine: Engine, model: str, files: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Return the tokens that an exit can write, ascending: the commonest, and those that end."""
    loaded = engine.load(model)
    vocab_size, left = loaded.decoder.config.vocab_size, _COUNTED_CHARS
    counts = np.zeros(vocab_size, dtype=np.int64)
    for _, text in files:
        counts += np.bincount(loaded.tokenizer.encode(text[:left]).token_ids, minlength=vocab_size)
        left -= len(text)
        if left <= 0:
            break
    ends = loaded.template.end_ids if loaded.template else loaded.tokenizer.end_ids
    counts[list(ends)] = counts.max() + 1
    # Of tokens that do not occur the first: a vocabulary begins with the commonest.
    order = np.argsort(-counts, kind="stable")[:NUM_TOKENS]
    return torch.from_numpy(np.sort(order))


def _head_in_layers(config: ModelConfig) -> float:
    """Return how many layers have as many weights as the head."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.vocab_size / (attention + 3 * config.intermediate_size)


def _opened(engine: Engine, model: str, places: Sequence[Place]) -> Iterator[tuple[Place, Session]]:
    for place in places:
        session = engine.open(
            "calibration", place.text, path=place.path, model=model, policy="turn"
        )
        session.cold_limit = ColdLimit(max_rows=_ROWS)
        try:
            yield place, session
        finally:
            engine.close("calibration")


def _final(session: Session, place: Place, check: Check) -> NDArray[np.int64]:
    """Return for each layer how many of a place's tokens have their last likeliest token there."""
    decoder = session.model.decoder
    num_layers, ids = decoder.config.num_layers, torch.arange(decoder.config.vocab_size)
    every = range(1, num_layers + 1)
    observed = observe(session, place, every, [(decoder.logits, ids)] * num_layers, check)
    assert observed is not None, "it had tokens before"
    return (observed.guesses == observed.final).sum(1)


def _tried(
    point: ExitPoint, number: int, rows: Sequence[Observed]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return with which probability tokens would leave, and whether they were right."""
    odds = [
        point.odds(torch.from_numpy(each.states[number]), torch.from_numpy(each.sure[number]))
        for each in rows
    ]
    probability = torch.cat(odds)[:, 0].double().sigmoid().numpy()
    return probability, np.concatenate([each.guesses[number] == each.final for each in rows])
