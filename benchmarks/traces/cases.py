"""One case: a document, edits in it, and a scored place whose text is not there yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .hunks import Hunk, applied

# In code points, for a window of 2,048 tokens (about 6,500 characters): an edit farther from the
# cursor may lie outside of the window, and a nearer one is not "elsewhere".
REACH_BEFORE, REACH_AFTER, NEAREST = 2600, 700, 200
REFERENCE = 240  # about twice the 32 tokens that are scored
_LONGEST_REFERENCE = 2 * REFERENCE
_SHORTEST_REFERENCE = REFERENCE // 2
_NO_CODE = ("#", "//", "/*", "*", '"""', "'''")
_INDENT = re.compile(r"[ \t]*")


class Case(NamedTuple):
    """One trace.

    Attributes:
        path: of the file in its package.
        records: as in the file, `open` first.
        distance: code points from the cursor to the nearest edit, when the completion is asked
            for; of a moved cursor to where it was.
        side: of the cursor, on which the edits are: "before", "after", "both" or "at".
        num_edits: single edits.
        detail: what was done, in words.
    """

    path: str
    records: list[dict[str, Any]]
    distance: int
    side: str
    num_edits: int
    detail: str

    @property
    def reference(self) -> str:
        """What really stands at the scored place, the last one if there are several."""
        found = (record["complete"] for record in reversed(self.records) if "complete" in record)
        return next(found)["reference"]


def stretch_from(text: str, start: int) -> tuple[int, int] | None:
    """Return the stretch of whole lines from `start` that is long enough as a reference."""
    end = text.find("\n", start + REFERENCE)
    if end < 0:
        end = len(text.rstrip())
    if not _SHORTEST_REFERENCE <= end - start <= _LONGEST_REFERENCE:
        return None
    return start, end


def line_start(text: str, at: int) -> int:
    """Return the place behind the indentation of the line of `at`."""
    first = text.rfind("\n", 0, at) + 1
    match = _INDENT.match(text, first)
    return match.end() if match else first


def code_starts(text: str, low: int, high: int) -> Iterator[int]:
    """Yield the places in [low, high) where a line of code begins, behind its indentation."""
    at = low if low == 0 or text[low - 1] == "\n" else text.find("\n", low) + 1
    while 0 <= at < high and (end := text.find("\n", at)) >= 0:
        line = text[at:end]
        if len(line.strip()) >= 12 and not line.lstrip().startswith(_NO_CODE):
            start = at + len(line) - len(line.lstrip())
            if low <= start < high:
                yield start
        at = end + 1


def edited_case(
    path: str,
    full: str,
    stretch: tuple[int, int],
    groups: Sequence[Sequence[Hunk]],
    detail: str,
) -> Case | None:
    """Take a stretch out of a text, edit the rest, and complete where it was.

    Args:
        path: of the file.
        full: the text before the edits, the stretch included.
        stretch: [start, end), what is to be completed.
        groups: of edits, one group a record; all offsets are those of `full`. What lies inside of
            the stretch changes the reference instead.
        detail: what the edits are, for the index.

    Returns:
        None where the reference can be read elsewhere in the text, or an edit crosses its border.
    """
    start, end = stretch
    hunks = [hunk for group in groups for hunk in group]
    if any(
        hunk.start < start < hunk.end or hunk.start < end < hunk.end
        or hunk.start == hunk.end in (start, end)
        for hunk in hunks
    ):  # fmt: skip
        return None
    inside = [hunk for hunk in hunks if start <= hunk.start and hunk.end <= end]
    outside = [hunk for hunk in hunks if hunk not in inside]
    reference = applied(
        full[start:end], [Hunk(h.start - start, h.end - start, h.text) for h in inside]
    )
    text = full[:start] + full[end:]
    if not outside:
        return None
    records: list[dict[str, Any]] = [
        {"open": {"path": path, "text": text}},
        {"cursor": {"offset": start}},
        {"idle": {"ms": 3000}},
    ]
    done: list[Hunk] = []
    for group in groups:
        edits = []
        for hunk in sorted(group, key=lambda hunk: (hunk.start, hunk.end)):
            if hunk in inside:
                continue
            shift = sum(each.growth for each in done if each.end <= hunk.start)
            shift -= end - start if hunk.start >= end else 0
            edits.append({"start": hunk.start + shift, "end": hunk.end + shift, "text": hunk.text})
        done += [hunk for hunk in group if hunk not in inside]
        if edits:
            records.append({"edits": edits} if len(edits) > 1 else {"edit": edits[0]})
    before = [hunk for hunk in outside if hunk.end <= start]
    after = [hunk for hunk in outside if hunk.start >= end]
    cursor = start + sum(hunk.growth for hunk in before)
    final = applied(
        text,
        [*before, *(Hunk(h.start - (end - start), h.end - (end - start), h.text) for h in after)],
    )
    if reference.strip() in final:
        return None
    gaps = []
    for hunk in before:
        later = sum(each.growth for each in before if each is not hunk and each.start >= hunk.end)
        gaps.append(start - hunk.end + later)
    for hunk in after:
        sooner = sum(each.growth for each in after if each is not hunk and each.end <= hunk.start)
        gaps.append(hunk.start - end + sooner)
    records.append({"complete": {"offset": cursor, "reference": reference}})
    side = "both" if before and after else "before" if before else "after"
    return Case(path, records, min(gaps), side, len(outside), detail)
