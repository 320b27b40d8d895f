"""Make replay traces from two released versions of a package.

A trace tells one story: somebody writes a stretch of a file, line by line, while real changes
between the two versions arrive elsewhere in it, inside the model's window; then the same at a place
so far away that the window starts anew. What is to be written is absent from the text until it is
typed, and serves as the reference of each completion.

With --sets, the evaluation sets instead: for each kind of edit so many traces with one scored place
each, from releases of packages that the embedded model was not trained on (`traces/sources.py`).

    python benchmarks/make_traces.py anyio==4.3.0 anyio==4.16.0 --file anyio/_core/_sockets.py
    python benchmarks/make_traces.py --sets FOLDER --per-kind 200
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quality import fim_fetch
from traces.cases import NEAREST, REACH_AFTER, REACH_BEFORE, REFERENCE
from traces.elsewhere import LARGEST_EDIT
from traces.hunks import Hunk, changes
from traces.sets import KINDS, write_sets

STRETCH = (500, 1400)  # shortest and longest stretch that is written in one trace
FEWEST_EDITS = 3
APART = 7000  # between two stretches of one trace: neither window shows the other


@dataclass
class Site:
    """A stretch [start, end) of the old file that both versions have, and changes around it."""

    start: int
    end: int
    hunks: list[Hunk]


def main() -> None:
    """Write the traces and the package's licence; print where they come from."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", nargs="?", help="older release, NAME==VERSION")
    parser.add_argument("new", nargs="?", help="newer release, NAME==VERSION")
    parser.add_argument("--sets", type=Path, metavar="FOLDER", help="make the evaluation sets")
    parser.add_argument("--per-kind", type=int, default=200, help="traces of a kind, at most")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--out", type=Path, default=Path("examples/traces"))
    parser.add_argument("--count", type=int, default=1, help="traces at most, one per file")
    parser.add_argument("--file", help="only this file of the package, for instance attr/_make.py")
    parser.add_argument("--edits", type=int, default=6, help="changes at one place, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.sets:
        write_sets(args.sets, args.per_kind, args.seed, args.cache, args.kinds)
        return
    if not args.new:
        parser.error("give two releases, NAME==VERSION each, or --sets FOLDER")
    old, new = wheel_files(args.old, args.cache), wheel_files(args.new, args.cache)
    name = args.new.split("==")[0]
    args.out.mkdir(parents=True, exist_ok=True)
    for path, text in new.items():
        if ".dist-info/" in path and Path(path).name.startswith(("LICENSE", "COPYING")):
            (args.out / f"{name}-LICENSE.txt").write_text(text, encoding="utf-8")
    found = []
    for path in sorted(old.keys() & new.keys()):
        wanted = path == args.file if args.file else path.endswith(".py")
        if wanted and (sites := choose_sites(old[path], new[path], args.edits)):
            found.append((sum(len(site.hunks) for site in sites), path, sites))
    for count, path, sites in sorted(found, key=lambda item: (-item[0], item[1]))[: args.count]:
        target = args.out / f"{name}-{Path(path).stem.strip('_')}.jsonl"
        with target.open("w", encoding="utf-8", newline="\n") as file:
            for record in story(path, old[path], sites, random.Random(args.seed)):
                file.write(json.dumps(record) + "\n")
        print(
            f"{target}: {path}, {args.old} -> {args.new}, {count} edits at {len(sites)} places, "
            f"{target.stat().st_size} bytes"
        )
    if not found:
        sys.exit(f"no file of {args.old} has {FEWEST_EDITS} changes near one unchanged stretch")


def wheel_files(requirement: str, cache: Path) -> dict[str, str]:
    """Return the text files of a wheel by path; it is fetched if the cache does not have it."""
    files = {}
    for path, data in fim_fetch.members(fim_fetch.fetched(requirement, cache)):
        try:
            files[path] = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return files


def choose_sites(old: str, new: str, most_edits: int) -> list[Site]:
    """Return stretches far apart, those that allow most completions first, in order of place."""
    hunks, equal = changes(old, new)
    hunks = [h for h in hunks if max(h.end - h.start, len(h.text)) <= LARGEST_EDIT]
    candidates = []
    for low, high in equal:
        for start, end in stretches(old, low, high):
            near = [
                hunk
                for hunk in hunks
                if (start - REACH_BEFORE <= hunk.start and hunk.end <= start - NEAREST)
                or (end + NEAREST <= hunk.start and hunk.end <= end + REACH_AFTER)
            ]
            count = min(most_edits, len(line_starts(old[start:end], len(near))))
            if count >= FEWEST_EDITS:
                candidates.append((-count, start, end, near))
    sites: list[Site] = []
    for count, start, end, near in sorted(candidates, key=lambda item: item[:3]):
        if all(start >= site.end + APART or end <= site.start - APART for site in sites):
            step = len(near) / -count
            sites.append(Site(start, end, [near[int(i * step)] for i in range(-count)]))
    return sorted(sites, key=lambda site: site.start)


def stretches(text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield stretches of whole lines in [low, high), from behind an indentation to a line's end."""
    at = low
    while high - at >= STRETCH[0]:
        line_end = text.find("\n", at, high)
        if line_end < 0:
            return
        start = at + len(text[at:line_end]) - len(text[at:line_end].lstrip())
        end = text.rfind("\n", at, min(high, start + STRETCH[1]))
        if start > at and end - start >= STRETCH[0]:
            yield start, end
        at = line_end + 1


def story(path: str, old: str, sites: list[Site], rng: random.Random) -> Iterator[dict]:
    """Yield the records: open; then at each site a change elsewhere, a completion, and typing."""
    stretches = [old[site.start : site.end] for site in sites]
    text, marks = old, [mark for site in sites for mark in (site, *site.hunks)]
    for site in reversed(sites):
        text = text[: site.start] + text[site.end :]
        shift(marks, site.end, site.start - site.end)
        site.end = site.start
    yield {"open": {"path": path, "text": text}}
    for site, to_write in zip(sites, stretches, strict=True):
        yield {"cursor": {"offset": site.start}}
        yield {"idle": {"ms": 3000}}
        rng.shuffle(site.hunks)
        stops = [*line_starts(to_write, len(site.hunks)), None]
        for hunk, start, stop in zip(site.hunks, stops[:-1], stops[1:], strict=True):
            yield {"edit": {"start": hunk.start, "end": hunk.end, "text": hunk.text}}
            shift(marks, hunk.end, len(hunk.text) - (hunk.end - hunk.start))
            end = to_write.find("\n", start + REFERENCE)
            reference = to_write[start : end if end > 0 else None]
            yield {"complete": {"offset": site.start, "reference": reference}}
            if stop is not None:
                typed = to_write[start:stop]
                yield {"edit": {"start": site.start, "end": site.start, "text": typed}}
                shift(marks, site.start, len(typed))
                yield {"cursor": {"offset": site.start}}
                yield {"idle": {"ms": 500}}


def shift(marks: list[Hunk | Site], at: int, growth: int) -> None:
    """Move the marks that lie at or behind a place where the text grew."""
    for mark in marks:
        if mark.start >= at:
            mark.start += growth
            mark.end += growth


def line_starts(to_write: str, wanted: int) -> list[int]:
    """Return up to `wanted` places behind an indentation, spread so that a reference remains."""
    places, at = [0], 0
    while (at := to_write.find("\n", at) + 1) and len(to_write) - at >= REFERENCE:
        line = to_write[at:].split("\n", 1)[0]
        if line.strip():
            places.append(at + len(line) - len(line.lstrip()))
    count = min(wanted, len(places))
    return [places[i * len(places) // count] for i in range(count)]


if __name__ == "__main__":
    main()
