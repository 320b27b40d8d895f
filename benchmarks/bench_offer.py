"""What is offered at held-out places: right and wrong characters, and tokens decoded for them.

A stretch of one to six lines is taken out of a file that the model was not trained on, and the
model writes there without a gate: at a new line, at the rest of a line, or in a gap before other
text. Then each setting of `confidence` is tried on the same answers, trimmed as the server does:
with the line's end as the end of a statement that is not whole (`is_within_statement`) and without,
and with it by language. Right is what agrees with the stretch from its beginning on.

    python benchmarks/bench_offer.py --places 540 --rows answers.jsonl
    python benchmarks/bench_offer.py --words --places 200       # right behind a word, or within one
    python benchmarks/bench_offer.py --at-end --places 240      # being typed, no bracket closed yet
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import harness
from bench_gate import KINDS, gated, word_start
from quality import fim_fetch

from keyturn.engine.engine import Engine
from keyturn.engine.prompt.growing_window import ColdLimit
from keyturn.engine.syntax.languages import language_of
from keyturn.engine.wire.config import Completion
from keyturn.server.settings import COMMAND_LINE
from keyturn.server.suggestion import BLOCK_END, LEAST, asked, is_within_statement, kind_of, offered

NUM_PLACES, WINDOW, MOST_LINES = 540, 512, 6
_WORD = re.compile(r"\w")
_MIN_CHARS, _MIN_LINE, _MAX_LINE = 3000, 8, 120


class Place(NamedTuple):
    """A file without a stretch, and where that was."""

    path: str
    kind: str
    text: str
    offset: int
    truth: str


class Answered(NamedTuple):
    """What the model wrote at a place, token by token, and why it ended."""

    place: Place
    pieces: list[tuple[str, float]]
    stop_reason: str


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--places", type=int, default=NUM_PLACES)
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--rows", type=Path, help="write answers here, or use those that are there")
    parser.add_argument("--words", action="store_true", help="the cursor is right behind a word")
    parser.add_argument("--window", type=int, default=WINDOW, help="rows at most, of 2,048")
    parser.add_argument("--at-end", action="store_true", help="the file ends at the cursor")
    args = parser.parse_args()
    if args.rows and args.rows.exists():
        with args.rows.open(encoding="utf-8") as file:
            answers = [Answered(Place(*place), *rest) for place, *rest in map(json.loads, file)]
    else:
        answers = answered(args)
    rows = [
        summarised(answers, confidence, ends_lines=ends_lines)
        for confidence in LEAST
        for ends_lines in (False, True)
    ]
    by_language = {
        language: [one for one in answers if language_of("", one.place.path) == language]
        for language in sorted({language_of("", one.place.path) for one in answers})
    }
    rows += [
        {**summarised(some, confidence, ends_lines=True), "places": language}
        for confidence in LEAST
        for language, some in by_language.items()
    ]
    harness.table(list(rows[0]), [list(row.values()) for row in rows])
    harness.finish("offer", args, {"num_places": len(answers), "runs": rows}, [])


def places(files: list[fim_fetch.File], seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Place]:
    """Yield places without end, languages and kinds by turns; the same ones for a seed."""
    rng = random.Random(seed)
    by_language: dict[str, list[tuple[str, str]]] = {}
    for _, path, text in files:
        if len(text) >= _MIN_CHARS:
            by_language.setdefault(fim_fetch.LANGUAGES[Path(path).suffix], []).append((path, text))
    while True:
        for kind in kinds:
            for language in sorted(by_language):
                while (found := _place(rng, kind, *rng.choice(by_language[language]))) is None:
                    pass
                yield found


def _place(rng: random.Random, kind: str, path: str, text: str) -> Place | None:
    """Take a stretch out of a text; None where that is not of the kind, or says nothing."""
    lines = text.split("\n")
    count = 1 if kind == "gap" else rng.randint(1, MOST_LINES)
    row = rng.randrange(5, len(lines) - count - 3) if len(lines) > count + 9 else 0
    body = lines[row].strip()
    if row == 0 or len(body) < _MIN_LINE or len(lines[row]) > _MAX_LINE:
        return None
    first = sum(len(line) + 1 for line in lines[:row])
    start = first + len(lines[row]) - len(lines[row].lstrip())
    end = first + sum(len(line) + 1 for line in lines[row : row + count]) - 1
    offset = start
    if kind != "line":
        within = rng.randrange(1, len(body) - 3)
        offset = start + (word_start(body[:within]) or within)
    if kind == "word":
        word = rng.choice([*re.finditer(r"\w{2,}", body)] or [None])
        offset = start if word is None else start + rng.randint(word.start() + 1, word.end())
        kind = "rest"
    if kind == "gap":
        end = rng.randrange(offset + 1, start + len(body))
    place = Place(path, kind, text[:offset] + text[end:], offset, text[offset:end])
    is_kind = bool(place.truth.strip()) and kind_of(place.text, offset) == kind
    return place if is_kind else None


def answered(args: argparse.Namespace) -> list[Answered]:
    """Ask at every place, without a gate and without the rule for lines."""
    engine = Engine(COMMAND_LINE.engine_config())
    found: list[Answered] = []
    kinds = ("word",) if args.words else ("line", "rest") if args.at_end else KINDS
    for place in places(fim_fetch.held_out_files(args.cache), args.seed, kinds):
        if args.at_end:
            place = place._replace(text=place.text[: place.offset])
        session = engine.open(
            "offer", place.text, path=place.path, model=args.model, policy="repair"
        )
        session.cold_limit = ColdLimit(max_rows=args.window)
        params = asked(place.text, place.offset, COMMAND_LINE.completion_params())
        pieces: list[tuple[str, float]] = []
        completion = session.complete(
            place.offset,
            # A stop of several characters would hold back parts of tokens, and with them where
            # each begins: what ends a text is cut off afterwards.
            replace(params, stop=params.stop if params.stop == ("\n",) else (), time_budget_ms=0.0),
            lambda: None,
            lambda *each: pieces.append(each),  # noqa: B023
        )
        engine.close("offer")
        found.append(Answered(place, pieces, completion.stop_reason))
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
        print(f"{len(found)} of {args.places}: {place.kind} in {place.path[-40:]}", flush=True)
        if len(found) == args.places:
            return found
    raise AssertionError("places have no end")


def summarised(answers: list[Answered], confidence: str, *, ends_lines: bool) -> dict[str, Any]:
    """Return what a setting offers."""
    num_shown = num_right = num_wrong = num_tokens = 0
    num_unfinished = [0, 0]  # without the rules for what nobody asked for, and with them
    for answer in answers:
        for invoked in (True, False):
            text, _ = _offered(answer, confidence, ends_lines=ends_lines, invoked=invoked)
            is_left = _leaves_word(text, answer.place)
            num_unfinished[not invoked] += is_left
        shown, decoded = _offered(answer, confidence, ends_lines=ends_lines)
        right = len(os.path.commonprefix([shown, answer.place.truth]))
        num_shown += bool(shown)
        num_right += right
        num_wrong += len(shown) - right
        num_tokens += decoded
    return {
        "confidence": confidence,
        "places": "all",
        "lines end": ends_lines,
        "shown": num_shown / len(answers),
        "right chars": num_right,
        "wrong chars": num_wrong,
        "words unfinished, if asked for": num_unfinished[0],
        "words unfinished": num_unfinished[1],
        "tokens": num_tokens,
        "tokens by right char": num_tokens / max(1, num_right),
    }


def _leaves_word(shown: str, place: Place) -> bool:
    """Whether the word before the cursor goes on, and not with what is shown."""
    at = place.offset
    sides = (place.text[at - 1 : at], place.truth[:1])
    return bool(shown) and all(map(_WORD.match, sides)) and not _WORD.match(shown)


def _offered(
    answer: Answered, confidence: str, *, ends_lines: bool, invoked: bool = False
) -> tuple[str, int]:
    """Return what is offered of an answer, and how many tokens had to be decoded for it."""
    place, pieces, reason = answer
    language = language_of("", place.path)
    written = gated(pieces, *LEAST[confidence][place.kind])
    if len(written) < sum(len(piece) for piece, _ in pieces):
        reason = "doubt"
    if BLOCK_END in written:
        written, reason = written[: written.index(BLOCK_END)], "stop"
    ends_here = ends_lines and place.kind == "rest"
    if ends_here and is_within_statement(place.text, place.offset, language) and "\n" in written:
        written, reason = written[: written.index("\n")], "stop"
    num_tokens = length = 0
    while num_tokens < len(pieces) and length <= len(written):
        length += len(pieces[num_tokens][0])
        num_tokens += 1
    first = tuple(probability for _, probability in pieces[:1])
    completion = Completion(written, (), 0, 0, 0.0, 0.0, 1, reason, first)
    kept = offered(completion, place.text, place.offset, language, invoked=invoked)
    return kept.text, num_tokens


if __name__ == "__main__":
    main()
