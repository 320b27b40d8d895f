"""What the gate shows and withholds, by threshold: right and wrong characters, for its calibration.

At held-out places of three kinds (a new line, the rest of a line, a gap before other text) the
model writes without a gate; then thresholds for all of it and for its first word are tried on the
same answers, before trimming: how often something is shown, how much of it is right up to the first
difference, how often the first word is wrong.

    python benchmarks/bench_gate.py --places 90
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import harness
from bench_just_opened import chosen
from quality import fim_fetch

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import ColdLimit
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import asked, kind_of

NUM_PLACES = 90
WINDOW = 512
KINDS = ("line", "rest", "gap")
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FIRST_WORD = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)


class Answered(NamedTuple):
    """What the model wrote at one place, token by token, and what stood there."""

    kind: str
    truth: str
    pieces: list[tuple[str, float]]


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--places", type=int, default=NUM_PLACES, help="of each kind")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--rows", type=Path, help="write answers here, or use those that are there")
    args = parser.parse_args()
    if args.rows and args.rows.exists():
        with args.rows.open(encoding="utf-8") as file:
            answers = [Answered(*json.loads(line)) for line in file]
    else:
        answers = answered(args)
    rows = [
        summarised([each for each in answers if each.kind == kind], kind, threshold, first)
        for kind in KINDS
        for threshold in THRESHOLDS
        for first in FIRST_WORD
        if first == 0 or first > threshold
    ]
    harness.table(list(rows[0]), [list(row.values()) for row in rows])
    harness.finish("gate", args, {"num_places": len(answers), "runs": rows}, [])


def answered(args: argparse.Namespace) -> list[Answered]:
    """Ask at every place, without a gate."""
    engine = Engine(COMMAND_LINE.engine_config())
    rng = random.Random(args.seed)
    found: list[Answered] = []
    for number, place in enumerate(
        chosen(fim_fetch.held_out_files(args.cache), len(KINDS) * args.places, args.seed)
    ):
        kind = KINDS[number % len(KINDS)]
        lines = place.text.split("\n")
        offset = sum(len(line) + 1 for line in lines[: place.row]) + place.column
        first, last = 0, len(place.line)
        if kind != "line":
            first = rng.randrange(1, max(2, last - 3))
            first = word_start(place.line[:first]) or first
        if kind == "gap":
            last = rng.randrange(first + 1, last)
        before, truth, after = place.line[:first], place.line[first:last], place.line[last:]
        text = place.text[:offset] + before + after + place.text[offset:]
        at = offset + len(before)
        assert kind_of(text, at) == kind, f"{place.path}: {kind_of(text, at)} for {kind}"
        session = engine.open("gate", text, path=place.path, model=args.model, policy="repair")
        session.cold_limit = ColdLimit(max_rows=WINDOW)
        params = replace(asked(text, at, COMMAND_LINE.completion_params()), stop=("\n",))
        pieces: list[tuple[str, float]] = []
        session.complete(at, params, go_on, lambda *each: pieces.append(each))  # noqa: B023
        engine.close("gate")
        found.append(Answered(kind, truth, pieces))
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
        print(f"{number + 1} {kind} {truth!r}: {''.join(p for p, _ in pieces)[:60]!r}", flush=True)
    return found


def gated(pieces: list[tuple[str, float]], threshold: float, first: float = 0.0) -> str:
    """Return the text before the token with which the joint probability falls below a threshold.

    Of a word that would have gone on nothing is left, as in `write`; `first` is the threshold of
    the first word.
    """
    text, joint = "", 1.0
    for piece, probability in pieces:
        joint *= probability
        word = text.lstrip()
        is_first = not word or (word_start(word) == 0 and _is_word(piece[:1]))
        if joint < (max(threshold, first) if is_first else threshold):
            return text[: word_start(text)] if _is_word(piece[:1]) else text
        text += piece
    return text


def word_start(text: str) -> int:
    """Return where the word at the end of a text begins; its length if it ends with none."""
    at = len(text)
    while at and _is_word(text[at - 1]):
        at -= 1
    return at


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def summarised(
    answers: list[Answered], kind: str, threshold: float, first: float
) -> dict[str, Any]:
    """Return what two thresholds show at places of one kind."""
    num_shown = num_exact = num_wrong_first = num_right = num_wrong = 0
    for answer in answers:
        shown = gated(answer.pieces, threshold, first).rstrip()
        if not shown.strip():
            continue
        right = len(os.path.commonprefix([shown, answer.truth]))
        num_shown += 1
        num_exact += shown == answer.truth.rstrip()
        num_wrong_first += right < len(first_word(answer.truth))
        num_right += right
        num_wrong += len(shown) - right
    num_chars = sum(len(answer.truth) for answer in answers)
    return {
        "kind": kind,
        "least": threshold,
        "of the first word": first,
        "shown": num_shown / len(answers),
        "exact": num_exact / len(answers),
        "wrong first word, of shown": num_wrong_first / max(num_shown, 1),
        "right chars, of all": num_right / num_chars,
        "wrong chars, of all": num_wrong / num_chars,
    }


def first_word(text: str) -> str:
    """Return a text up to the end of its first word, or of its first character that is in none."""
    found = re.match(r"\s*(?:\w+|.)", text)
    return found[0] if found else text


if __name__ == "__main__":
    main()
