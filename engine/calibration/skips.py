"""From source code to sets of sub-layers that drafts leave out: `keyturn calibrate --skip`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine import Engine
from ..exits.skip_file import SkipSet
from ..model.decoder import Check
from ..prompt.growing_window import ColdLimit
from ..session import Session
from ..syntax.languages import language_of
from ..wire.errors import BadRequest
from .places import draw, source_files
from .skip_search import Bools, Floats, KnownText, Said, search

# Places of each language, and rows before the cursor; every other place is kept from the search.
_PLACES, _ROWS = 24, 320
# Sets that are tried for a language. Duo-LLM's routers, too, are held against the best of a hundred
# (arXiv 2410.10846, section 5).
NUM_TRIED = 100
# A token is easy where all layers give their likeliest so much.
_EASY = 0.9


@dataclass(frozen=True, slots=True)
class OracleRow:
    """How far a set is from the best for each token, over tokens of one difficulty.

    Attributes:
        name: the tokens.
        num_tokens: of them.
        agreement: share of them whose likeliest is that of all layers: without the set, and without
            whichever of the tried sets is best for each token.
        loss: nats of the token that stands there: of all layers, and the same two.
    """

    name: str
    num_tokens: int
    agreement: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found for one language.

    Attributes:
        language: its LSP identifier.
        best: the set.
        num_tokens: tokens that it was searched on.
        oracle: by difficulty, over tokens that were kept from the search; empty if not asked for.
    """

    language: str
    best: SkipSet
    num_tokens: int
    oracle: tuple[OracleRow, ...]

    def report(self) -> str:
        """Return the figures for people."""
        names = [
            f"{at + 1}{part}"
            for at, each in enumerate(self.best.skipped)
            for bit, part in ((1, "a"), (2, "m"))
            if each & bit
        ]
        lines = [
            f"{self.language}: without {' '.join(names)} (layers, their attention or MLP) "
            f"{self.best.agreement:.1%} of the tokens are the same; {self.num_tokens} tokens tried",
        ]
        if self.oracle:
            lines.append("tokens        same: set  oracle   nats: all layers    set  oracle")
        for row in self.oracle:
            (ours, ideal), (full, of_set, best) = row.agreement, row.loss
            lines.append(
                f"{row.name:6} {row.num_tokens:6}  {ours:8.1%}  {ideal:6.1%}  "
                f"{full:16.3f}  {of_set:5.3f}  {best:6.3f}"
            )
        return "\n".join([*lines, ""])


def find_skips(
    engine: Engine,
    model: str,
    paths: Sequence[str],
    *,
    num_skipped: int,
    wants_oracle: bool,
    check: Check,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Searched]:
    """Search a set of sub-layers for every language there is enough source code of.

    Args:
        engine: runs the model.
        model: its name.
        paths: files or folders of source code.
        num_skipped: sub-layers that a set leaves out.
        wants_oracle: say as well how far it is from the best of all sets for each token.
        check: called between layers.
        progress: receives how many sets were tried, and of how many.

    Raises:
        BadRequest: there is too little code, or the model has not so many sub-layers.
        ModelNotFound, ModelLoadError, OutOfMemory.
    """
    loaded = engine.load(model)
    num_layers = loaded.decoder.config.num_layers
    most = max(0, 2 * (num_layers - 2) - 1)
    if not 1 <= num_skipped <= most:
        raise BadRequest(
            f"--skip {num_skipped}: must be from 1 to {most}, the sub-layers of this model but for "
            "those of its first and last layer"
        )
    by_language: dict[str, list[tuple[str, str]]] = {}
    for path, text in source_files(paths, loaded.languages):
        by_language.setdefault(language_of("", path), []).append((path, text))
    drawn = {language: draw(files, _PLACES, seed=0) for language, files in by_language.items()}
    enough = {language: places for language, places in drawn.items() if len(places) == _PLACES}
    if not enough:
        raise BadRequest(
            f"fewer than {_PLACES} places to learn from under {', '.join(paths)}; give folders "
            "with more source code of one language"
        )
    total, found = len(enough) * NUM_TRIED, []
    for number, (language, places) in enumerate(enough.items()):
        opened: list[Session] = []
        try:
            for at, place in enumerate(sorted(places, key=lambda each: each.path)):
                session = engine.open(
                    ("skips", at), place.text, path=place.path, model=model, policy="turn"
                )
                session.cold_limit = ColdLimit(max_rows=_ROWS)
                session.set_cursor(place.offset)
                session.sync(check)
                opened.append(session)
            half = _PLACES // 2  # by file: what a file says once it says again
            known, held_back = (KnownText(part, check) for part in (opened[:half], opened[half:]))
            tried: dict[bytes, Said] = {}
            for skipped, said in search(known, num_layers, num_skipped, NUM_TRIED, seed=0):
                tried[skipped] = said
                progress(number * NUM_TRIED + len(tried), total)
            best = max(tried, key=lambda skipped: float(known.agrees(tried[skipped]).mean()))
            said = held_back.said(best)
            others = (held_back.said(each) for each in tried) if wants_oracle else ()
            found.append(
                Searched(
                    language,
                    SkipSet(best, float(held_back.agrees(said).mean())),
                    len(known.full.loss),
                    _oracle(held_back, said, list(others)),
                )
            )
        finally:
            for at in range(len(places)):
                engine.close(("skips", at))
    return found


def _oracle(text: KnownText, of_set: Said, tried: Sequence[Said]) -> tuple[OracleRow, ...]:
    """Compare a set with the best of those that were tried for each token."""
    if not tried:
        return ()
    losses: Floats = np.stack([each.loss for each in tried])
    agrees: Bools = np.stack([text.agrees(each) for each in tried])
    is_easy = text.full.probability >= _EASY
    rows = []
    for name, chosen in (("easy", is_easy), ("hard", ~is_easy), ("all", np.ones_like(is_easy))):
        if chosen.any():
            agreement = (text.agrees(of_set), agrees.max(0))
            loss = (text.full.loss, of_set.loss, losses.min(0))
            rows.append(
                OracleRow(
                    name,
                    int(chosen.sum()),
                    tuple(float(each[chosen].mean()) for each in agreement),
                    tuple(float(each[chosen].mean()) for each in loss),
                )
            )
    return tuple(rows)
