r"""Context from other files: what the embedded model makes of it, against the open file alone.

A line's end is taken out of a file of the held-out packages, at the start of its code or between
two words, and the model completes the line, at the same window of tokens each time: with the file
alone, and with what the language server chooses of the files beside it. "Fresh": every row computed
behind that. "Kept": put before the rows that are there, as while somebody works, which turns
them. "N above": kept, too, but chosen when the cursor was N lines above, and those not yet written.
With --definitions also what the file's imports define, by the names around the cursor, and
("known") by those of the line that is to be found, as training chooses; both fresh. Packages are
unpacked, and read as a workspace is. Places where nothing is found are counted and not asked.

    python benchmarks/bench_other_files.py --wider --places 200 --threads 1 --raw answers.jsonl
    python benchmarks/bench_other_files.py --merge answers.jsonl --save
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import harness
from bench_just_opened import Place as WithoutLine
from bench_just_opened import chosen
from fim_compare import sign_test
from quality import fim_fetch, fim_metrics
from quality.definitions import definitions, near_names

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.session import Session
from keyturn.engine.wire.config import CompletionParams
from keyturn.server.nearby.alike import Chunk
from keyturn.server.nearby.shown import choose
from keyturn.server.nearby.workspace import beside
from keyturn.server.settings import COMMAND_LINE

ALONE = "alone"
MAX_TOKENS = 40
MIN_CHARS, MIN_MIDDLE = 600, 4  # of a file, and of what is taken out
_WORD_START = re.compile(r"(?<=[^\w$])(?=[\w$])|(?<=[\w$])(?=[^\w$\s])|(?<=[(.=,\[])")
_NAME = re.compile(r"[\w$]{3,}")


class Place(NamedTuple):
    """A file without the end of one line.

    Attributes:
        root: folder of its package.
        path: in it.
        text: without what stood behind the cursor on its line.
        offset: of the cursor.
        middle: what stood there.
    """

    root: Path
    path: str
    text: str
    offset: int
    middle: str


def main() -> None:
    """Run, or read what was run before; print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    add = parser.add_argument
    add("--places", type=int, default=200, help="files to take a place of")
    add("--first", type=int, default=0, help="leave out so many of them")
    add("--wider", action="store_true", help="four times as many packages")
    add("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    add("--ways", nargs="+", choices=("fresh", "kept"), default=["kept", "fresh"])
    add("--above", type=int, nargs="*", default=[], help="lines written since the choice")
    add("--definitions", action="store_true", help="also definitions of what is named")
    add("--seconds", type=float, default=math.inf, help="no place is begun later")
    add("--raw", type=Path, help="add a JSON line for each place")
    add("--merge", type=Path, nargs="+", metavar="RAW", help="read such files, and run nothing")
    args = parser.parse_args()
    if args.merge:
        rows = [json.loads(line) for path in args.merge for line in path.open(encoding="utf-8")]
    else:
        with tempfile.TemporaryDirectory(prefix="kt") as folder:
            rows = list(run(args, Path(folder)))
    harness.finish("other_files", args, report(rows), [])


def run(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each place gave, one after the other."""
    settings = replace(COMMAND_LINE, num_threads=args.threads, cold_budget_ms=0)
    engine = Engine(settings.engine_config())
    engine.load(args.model)
    begin = time.monotonic()
    for place in itertools.islice(places(args, folder), args.first, None):
        if time.monotonic() - begin > args.seconds:
            break
        ways = {way: some for way, some in ways_of(args, place).items() if some}
        row: dict[str, Any] = {"path": place.path, "expected": place.middle, "ways": {}}
        session = opened(engine, args.model, place)
        if ways:
            row["ways"][ALONE] = answer(session, place, [])
        for way, some in ways.items():
            is_fresh = way in ("fresh", "asked", "known")
            used = opened(engine, args.model, place) if is_fresh else session
            row["ways"][way] = answer(used, place, some, heal=is_fresh)
        if args.raw:
            with args.raw.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        yield row


def ways_of(args: argparse.Namespace, place: Place) -> dict[str, list[Chunk]]:
    """Return what is shown of other files, by way."""
    path, root, text, at = str(place.root / place.path), str(place.root), place.text, place.offset
    found: dict[str, list[Chunk]] = {}
    for num_lines in sorted(args.above, reverse=True):
        start = at
        for _ in range(num_lines):
            start = max(0, text.rfind("\n", 0, start))
        before = text[:start] + text[at:]
        found[f"{num_lines} above"] = choose(path, before, start, [], [root], hides=True)
    found |= dict.fromkeys(args.ways, choose(path, text, at, [], [root], hides=True))
    if args.definitions:
        others = list(beside(path, text, [root]))
        found["asked"] = definitions(path, text, near_names(text, at), others)
        names = dict.fromkeys(_NAME.findall(place.middle), 1.0)
        found["known"] = definitions(path, text, names, others)
    return found


def places(args: argparse.Namespace, folder: Path) -> Iterator[Place]:
    """Yield the places that the options name, the same ones for a seed; unpack their packages."""
    named: dict[str, tuple[str, str]] = {}
    drawn: list[fim_fetch.File] = []
    for package, path, text in fim_fetch.held_out_files(args.cache, args.wider):
        file = folder / package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        named[f"{package}/{path}"] = package, path
        drawn.append((package, f"{package}/{path}", text))
    rng = random.Random(args.seed)
    for found in chosen(drawn, args.places, args.seed, MIN_CHARS):
        package, path = named[found.path]
        yield within(rng, found, path, folder / package)


def within(rng: random.Random, found: WithoutLine, path: str, root: Path) -> Place:
    """Return a place in the line that was taken out: at its start or, as often, between words."""
    last = len(found.line) - MIN_MIDDLE
    cuts = [at for at in map(re.Match.start, _WORD_START.finditer(found.line)) if at <= last]
    cut = rng.choice(cuts) if cuts and rng.random() < 0.5 else 0
    lines = found.text.split("\n")
    offset = sum(len(line) + 1 for line in lines[: found.row]) + found.column
    text = found.text[:offset] + found.line[:cut] + found.text[offset:]
    return Place(root, path, text, offset + cut, found.line[cut:])


def opened(engine: Engine, model: str, place: Place) -> Session:
    """Return a session that knows nothing of other files."""
    return engine.open("place", place.text, path=place.path, model=model, policy="repair")


def answer(session: Session, place: Place, some: list[Chunk], heal: bool = False) -> dict[str, Any]:
    """Return what the model writes behind chunks, and how likely the true line is to it.

    Args:
        session: as it was before them.
        place: where.
        some: the chunks.
        heal: compute all rows anew.
    """
    session.set_cursor(place.offset)
    session.show_others(some)
    session.grow(go_on)
    params = CompletionParams(MAX_TOKENS, 0.0, 1.0, 0, ("\n",), 0.0)
    completion = session.complete(place.offset, params, go_on, heal=heal)
    nll, num_tokens = loss(session, place.middle)
    return {
        "got": completion.text,
        "exact": completion.text.strip() == place.middle.strip(),
        "edit": fim_metrics.edit_similarity(completion.text, place.middle),
        "nll": nll,
        "tokens": num_tokens,
        "prompt_tokens": completion.num_prompt_tokens,
        "context_tokens": session.num_other_tokens,
    }


def loss(session: Session, middle: str) -> tuple[float, int]:
    """Return nats of the true line's tokens together, and how many those are."""
    token_ids = session.model.tokenizer.encode(middle).token_ids.tolist()
    logits = session.prompt.score([*token_ids, 0], go_on)[:-1]
    log_probs = logits.double().log_softmax(-1)
    wanted = log_probs.new_tensor(token_ids).long()
    return -log_probs.gather(1, wanted[:, None]).sum().item(), len(token_ids)


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print a table of all ways, and return what it is made of."""
    asked = [row["ways"] for row in rows if row["ways"]]
    figures: dict[str, Any] = {"num_places": len(rows), "num_with_chunks": len(asked)}
    ways = dict.fromkeys(way for each in asked for way in each if way != ALONE)
    for way in ways:
        pairs = [(each[ALONE], each[way]) for each in asked if way in each]
        figures[way.replace(" ", "_")] = compared(pairs)
    if ways:
        lines = [figures[way.replace(" ", "_")] for way in ways]
        harness.table(
            ["way", *lines[0]],
            [[way, *line.values()] for way, line in zip(ways, lines, strict=True)],
        )
    print(f"{len(asked)} of {len(rows)} places have anything of other files")
    return figures


def compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return shares in percent, similarities from 0 to 100 and nats per token, over pairs.

    A gain "within" is half of its interval of 95 %; z is that of the sign test.
    """
    wins, losses, z = sign_test([(b["exact"], a["exact"]) for a, b in pairs])
    gain = [100.0 * (b["exact"] - a["exact"]) for a, b in pairs]
    edit = [b["edit"] - a["edit"] for a, b in pairs]
    nats = [a["nll"] / a["tokens"] - b["nll"] / b["tokens"] for a, b in pairs]
    return {
        "n": len(pairs),
        "alone": 100.0 * fmean(a["exact"] for a, _ in pairs),
        "exact": 100.0 * fmean(b["exact"] for _, b in pairs),
        "within": half_interval(gain),
        "wins": wins,
        "losses": losses,
        "z": z,
        "edit_gain": fmean(edit),
        "edit_within": half_interval(edit),
        "nats_gain": fmean(nats),
        "nats_within": half_interval(nats),
        "tokens": fmean(b["context_tokens"] for _, b in pairs),
        "prompt_more": fmean(b["prompt_tokens"] - a["prompt_tokens"] for a, b in pairs),
    }


def half_interval(differences: list[float]) -> float | None:
    """Return half of the interval of 95 % around the mean, None where that is not defined."""
    if len(differences) < 2:
        return None
    return 1.96 * stdev(differences) / math.sqrt(len(differences))


if __name__ == "__main__":
    main()
