"""What the layers say of tokens that are known: rows for training and calibration.

Teacher forcing, as in SEC (arXiv 2401.09964, section 4): the true middle goes through the layers in
one pass behind the prompt, and every exit is asked what it would have written in place of each
token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..exits.controller import sureness
from ..exits.fill import normalised
from ..model.decoder import Check
from ..model.heads import Head
from ..session import Session

if TYPE_CHECKING:
    from .places import Place

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Of a middle, at most.
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Observed:
    """One middle's n tokens, by what predicts each.

    Attributes:
        place: where it is.
        tokens: (n,) that stand there.
        states: (num_exits, n, hidden_size) float16, normalised; see `exits.controller.normalised`.
        guesses: (num_exits, n) the likeliest token of each exit, of those that its head has.
        sure: (num_exits, n, 2) as `exits.controller.sureness` returns it.
        final: (n,) the likeliest token after all layers.
        probability: (n,) that they give it.
        first_line: how many tokens the first line has, its line end with it.
    """

    place: Place
    tokens: Ints
    states: NDArray[np.float16]
    guesses: Ints
    sure: Floats
    final: Ints
    probability: Floats
    first_line: int


def observe(
    session: Session,
    place: Place,
    depths: Sequence[int],
    heads: Iterable[tuple[Head, Tensor]],
    check: Check,
) -> Observed | None:
    """Return what the layers say of a place's middle; None if it has no tokens.

    Args:
        session: of the place's text, opened with as much window as is to be seen.
        place: the place.
        depths: layers after which an exit is asked, ascending.
        heads: of each exit, what reads a state, and the tokens of its columns.
        check: called between layers.
    """
    session.set_cursor(place.offset)
    session.sync(check)
    tokenizer, forced = session.model.tokenizer, session.forced_text
    encoded = tokenizer.encode(forced + place.middle)
    tokens = encoded.token_ids[:MAX_TOKENS].astype(np.int64)
    after = [*encoded.starts[1:].tolist(), len(forced + place.middle)][: len(tokens)]
    first = sum(end <= len(forced) for end in after)
    if first == len(tokens):
        return None
    num_layers = session.model.decoder.config.num_layers
    through = [*depths, num_layers] if num_layers not in depths else list(depths)
    *states, last = session.prompt.states(tokens.tolist(), through, check)
    if num_layers in depths:
        states.append(last)
    guesses, sure = [], []
    for hidden, (head, ids) in zip(states, heads, strict=True):
        best, figures = sureness(head(hidden[first:]))
        guesses.append(ids[best.cpu()].numpy())
        sure.append(figures.cpu().numpy())
    log_probs = session.model.decoder.logits(last[first:]).log_softmax(-1).cpu()
    top = log_probs.max(-1)
    text, line = forced + place.middle, len(forced + place.middle.split("\n")[0])
    ends_line = sum(end <= line for end in after[first:]) + ("\n" in text[line:])
    return Observed(
        place,
        tokens[first:],
        torch.stack([normalised(each[first:]) for each in states]).half().cpu().numpy(),
        np.stack(guesses),
        np.stack(sure).astype(np.float32),
        top.indices.numpy(),
        top.values.exp().numpy(),
        min(max(1, ends_line), len(tokens) - first),
    )
