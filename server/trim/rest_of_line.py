"""Text that stands behind the cursor on its line, which the completion must run into."""

from __future__ import annotations

from .brackets import (
    PAIRS,
    QUOTES,
    closes_nothing,
    first_item,
    leaves_open,
    num_paired,
    scan,
)
from .lines import WORD, Sides, last_line


def drop_rest_of_line(kept: str, around: Sides) -> str:
    """Drop the completion's end when it is the rest of the line, which is there already."""
    cut = before_rest(kept, around)
    return kept if cut is None else cut


def before_rest(kept: str, around: Sides) -> str | None:
    """Return the completion up to the rest of the line, None if it does not end with that."""
    rest = around.rest.rstrip()
    line = last_line(kept)
    if not rest.strip() or not line:
        return None
    if rest[0] in QUOTES and _closes_quote(around.before, line, rest[0]):
        three = rest[0] * 3
        closing = three if rest.startswith(three) and line.endswith(three) else rest[0]
        return kept[: kept.rindex(closing)]
    rest = rest.lstrip()
    line = line.rstrip()
    if not line.endswith(rest):
        return None
    before = line[: len(line) - len(rest)]
    if bool(WORD.match(rest)) and bool(WORD.match(before[-1:])):
        return None  # it would start inside a word
    cut = kept[: kept.rindex(rest)]
    if leaves_open(cut):
        return None  # closers of the rest are those of what the completion opened
    if closes_nothing(rest) or (_loses_closers(kept, around) and not _loses_closers(cut, around)):
        return cut
    return None


def before_closer(kept: str, around: Sides) -> str | None:
    """Return the completion up to the closer of the bracket or quote that the cursor is in.

    A model that goes on behind that closer in another way than the line does has filled the place
    before it all the same. Where more items stand between the cursor and the closer, its first item
    is what fills the place.

    Returns:
        None if the line does not go on with a closer or a comma, or the completion does not reach
        that closer.
    """
    rest = around.rest.lstrip()
    closer = rest[:1]
    if closer in QUOTES and around.before.count(closer) % 2 == 1:
        at = kept.find(closer)
        return kept[:at] if at >= 0 else None
    opened = scan(around.prefix, [])[0]
    if not opened or (closer != "," and PAIRS.get(closer) != opened[-1]):
        return None
    _, closers = scan(kept, opened)
    if not closers:
        return None
    filled = kept[: closers[0]]
    return first_item(filled) if closer == "," else filled


def overlap(kept: str, around: Sides) -> str | None:
    """Return the completion without its end where the rest of the line begins alike, if it does."""
    rest, line = around.rest.strip(), kept.rstrip()
    for length in range(min(len(rest), len(line)) - 1, 0, -1):
        if line.endswith(rest[:length]):
            return line[: len(line) - length]
    return None


def _loses_closers(kept: str, around: Sides) -> bool:
    """Whether closers behind the cursor lose their openers to the completion."""
    opened = scan(around.prefix, [])[0]
    if opened is None:
        return False
    after, _ = scan(kept, opened)
    paired = num_paired(around.suffix, opened)
    return after is None or num_paired(around.suffix, after) < paired


def _closes_quote(before: str, line: str, quote: str) -> bool:
    """Whether the cursor is inside a string that `line` ends by closing."""
    return before.count(quote) % 2 == 1 and line.endswith(quote) and line.count(quote) % 2 == 1
