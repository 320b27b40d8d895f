"""Edits elsewhere: real changes between two releases, not near the place that is completed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from . import blocks
from .cases import (
    NEAREST,
    REACH_AFTER,
    REACH_BEFORE,
    Case,
    code_starts,
    edited_case,
    stretch_from,
)
from .hunks import Hunk, changes
from .sources import Source

KINDS = ("insert", "delete", "replace", "several", "move")
LARGEST_EDIT = 1500
_BAND = 800  # code points, about 250 tokens
_MOST_PLACES = 6
_SHORTEST_MOVED = 40
_MOST_RECORDS = 3  # of an insertion: a policy may compute everything anew for each


def cases(kind: str, source: Source, rng: random.Random) -> Iterator[Case]:
    """Yield cases of one kind, near and far places by turns."""
    if source.old is None:
        return
    old = source.old
    hunks, equal = changes(old, source.text)
    for group, detail in groups(kind, source, hunks, rng):
        if any(max(hunk.end - hunk.start, len(hunk.text)) > LARGEST_EDIT for hunk in group):
            continue
        # What a function moves past may be changed in the release: it stays as it was.
        spans = equal if kind != "move" else [(0, len(old))]
        starts = list(places(old, spans, group))
        rng.shuffle(starts)
        near = [start for start in starts if gap(start, group) < _BAND]
        far = [start for start in starts if gap(start, group) >= _BAND]
        # One record for a tool's edits at several places; of a person's, one after the other.
        is_tool = kind in ("several", "move") and rng.random() < 0.5
        records = [group] if is_tool else [[hunk] for hunk in group]
        for some in (near, far) if rng.random() < 0.6 else (far, near):
            for start in some[:8]:
                if (stretch := stretch_from(old, start)) and (
                    case := edited_case(source.path, old, stretch, records, detail)
                ):
                    yield case if is_tool or kind == "move" else typed(case)
                    break


def groups(
    kind: str, source: Source, hunks: list[Hunk], rng: random.Random
) -> list[tuple[list[Hunk], str]]:
    """Return what may be changed at once, shuffled, and where it comes from."""
    old = source.old or ""
    if kind == "several":
        found = list(neighbours(hunks, rng))
    elif kind == "move":
        found = moved(old, hunks)
    else:
        found = [[hunk] for hunk in hunks if kind_of(hunk) == kind and is_large_enough(old, hunk)]
    rng.shuffle(found)
    made = list(blocks.moves(old, source.language, LARGEST_EDIT)) if kind == "move" else []
    rng.shuffle(made)
    return [*((group, "as released") for group in found), *((group, "made") for group in made)]


def typed(case: Case) -> Case:
    """Return a case whose insertions of several lines come in some records, as they are typed."""
    records = []
    for record in case.records:
        edit = record.get("edit")
        lines = edit["text"].splitlines(keepends=True) if edit else []
        if edit is None or len(lines) < 2:
            records.append(record)
            continue
        size = -(-len(lines) // _MOST_RECORDS)
        start, end = edit["start"], edit["end"]
        for first in range(0, len(lines), size):
            text = "".join(lines[first : first + size])
            records.append({"edit": {"start": start, "end": end, "text": text}})
            start = end = start + len(text)
    return case._replace(records=records, num_edits=sum("edit" in record for record in records))


def kind_of(hunk: Hunk) -> str:
    """Return what a hunk does."""
    if not hunk.text:
        return "delete"
    return "replace" if hunk.end > hunk.start else "insert"


def is_large_enough(text: str, hunk: Hunk) -> bool:
    """Whether a hunk changes more than white space."""
    return len((text[hunk.start : hunk.end] + hunk.text).strip()) >= 2


def gap(start: int, group: Sequence[Hunk]) -> int:
    """Return how far the nearest hunk is from a place."""
    return min(max(start - hunk.end, hunk.start - start) for hunk in group)


def places(text: str, spans: list[tuple[int, int]], group: Sequence[Hunk]) -> Iterator[int]:
    """Yield the places in `spans` that all hunks are elsewhere of, but within the window."""
    low = min(hunk.start for hunk in group) - REACH_AFTER
    high = max(hunk.end for hunk in group) + REACH_BEFORE
    for first, last in spans:
        for start in code_starts(text, max(first, low, 0), min(last, high)):
            stretch = stretch_from(text, start)
            if stretch is None or stretch[1] > last:
                continue
            end = stretch[1]
            if all(
                start - REACH_BEFORE <= hunk.start and hunk.end <= start - NEAREST
                or end + NEAREST <= hunk.start and hunk.end <= end + REACH_AFTER
                for hunk in group
            ):  # fmt: skip
                yield start


def neighbours(hunks: list[Hunk], rng: random.Random) -> Iterator[list[Hunk]]:
    """Yield runs of two to six hunks that fit into one window."""
    for first in range(len(hunks)):
        size = rng.randint(2, _MOST_PLACES)
        run = hunks[first : first + size]
        while len(run) > 1 and run[-1].end - run[0].start > REACH_BEFORE - NEAREST:
            run = run[:-1]
        if len(run) > 1:
            yield run


def moved(old: str, hunks: list[Hunk]) -> list[list[Hunk]]:
    """Return pairs of hunks that take a text away and put it in again elsewhere."""
    taken = {
        old[hunk.start : hunk.end].strip(): hunk for hunk in hunks if kind_of(hunk) == "delete"
    }
    return [
        sorted((hunk, taken[key]), key=lambda hunk: hunk.start)
        for hunk in hunks
        if kind_of(hunk) == "insert"
        and len(key := hunk.text.strip()) >= _SHORTEST_MOVED
        and key in taken
    ]
