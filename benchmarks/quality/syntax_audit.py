"""The judge of syntax where a text is being written: is the right text taken, and nonsense not?

At tokens of held-out files the rest of the line is judged as the server judges what a model wrote
(`Surroundings.accepts`): what stood there, and the same with its last character replaced by a
closing bracket. The file ends at the place, or goes on with the next line that is not indented, or
is whole but for that rest.

    python benchmarks/quality/syntax_audit.py [FOLDER_OF_SOURCES ...]
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import harness
from quality import fim_fetch

from keyturn.engine.syntax.languages import has_grammar, language_of
from keyturn.engine.syntax.surroundings import Surroundings

NUM_FILES, NUM_PLACES = 60, 4
_MIN_CHARS, _MAX_CHARS = 300, 60_000
_TOKEN = re.compile(r"\b\w|[^\w\s]")
_UNINDENTED = re.compile(r"^[A-Za-z@]", re.MULTILINE)


class Place(NamedTuple):
    """A text cut at a token: before it, the rest of its line, what comes below that."""

    before: str
    rest: str
    below: str


def main() -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of further sources")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    rows = []
    for language, texts in sorted(_texts(args.folders, args.cache).items()):
        rng = random.Random(args.seed)
        rng.shuffle(texts)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts[:NUM_FILES]:
            for place in _places(text, rng):
                beyond = _UNINDENTED.search(place.below)
                below = place.below[beyond.start() :] if beyond else ""
                _judge(place, "", language, counts["ends here"])
                _judge(place, f"\n\n{below}", language, counts["goes on below"])
                _judge(place, f"\n{place.below}", language, counts["is whole"])
        for name, count in counts.items():
            number = max(1, count["places"])
            shares = (count[what] / number for what in ("right refused", "wrong taken"))
            rows.append([language, name, count["places"], *shares, count["us"] / number / 2e3])
    header = ["language", "the file", "places", "right refused", "wrong taken", "ms a verdict"]
    harness.table(header, rows)


def _judge(place: Place, suffix: str, language: str, count: Counter[str]) -> None:
    at = len(place.before)
    around = Surroundings(place.before + suffix, at, at, language)
    if around.kind != "code":
        return
    is_closed = place.rest.endswith(")")
    wrong = f"{place.rest})" if is_closed else f"{place.rest[:-1]})"
    started_at = time.perf_counter()
    count["right refused"] += not around.accepts(place.rest, may_open=True)
    count["wrong taken"] += around.accepts(wrong, may_open=True)
    count["us"] += round((time.perf_counter() - started_at) * 1e6)
    count["places"] += 1


def _texts(folders: list[Path], cache: Path) -> dict[str, list[str]]:
    """Return texts by their language."""
    files = [(path, text) for _, path, text in fim_fetch.held_out_files(cache)]
    for path in (one for folder in folders for one in sorted(folder.rglob("*")) if one.is_file()):
        if has_grammar(language_of("", path.name)):
            files.append((path.name, path.read_text(encoding="utf-8", errors="replace")))
    found: dict[str, list[str]] = defaultdict(list)
    for path, text in files:
        if _MIN_CHARS < len(text) < _MAX_CHARS:
            found[language_of("", path)].append(text)
    return found


def _places(text: str, rng: random.Random) -> Iterator[Place]:
    """Yield places in lines that are no comments."""
    lines = text.split("\n")
    for _ in range(NUM_PLACES):
        row = rng.randrange(len(lines))
        line = lines[row].rstrip()
        starts = [match.start() for match in _TOKEN.finditer(line)]
        if len(line.strip()) < 3 or line.lstrip().startswith(("//", "/*", "*", "#")):
            continue
        column = rng.choice(starts)
        before = "\n".join([*lines[:row], line[:column]])
        yield Place(before, line[column:], "\n".join(lines[row + 1 :]))


if __name__ == "__main__":
    main()
