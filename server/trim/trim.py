"""The rules in their order, and the syntax check at their end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from ...engine.syntax.region import unified
from ...engine.syntax.surroundings import Surroundings, look
from .brackets import drop_taken_closers, leaves_open
from .comment import drop_after_comment, drop_bare_mark
from .cut_off import (
    CUT_OFF,
    DOUBT,
    TIME,
    begins_string,
    drop_comments_at_end,
    drop_partial_line,
    ends_in_keyword,
    ends_in_name,
    leaves_string,
    waits_for_more,
    without_last_token,
)
from .indentation import drop_beyond_block, drop_excess_indent
from .lines import Sides, sides
from .repeats import drop_lines_below, drop_loop, drop_repeats_within, repeats_above
from .rest_of_line import before_closer, before_rest, drop_rest_of_line, overlap
from .spacing import drop_doubled_space, leaves_white_space

# So many lines are given up one by one. Each try is a parse of the neighbourhood.
_MAX_SINGLE_TRIES = 4
_MAX_TOKEN_TRIES = 8
# What was cut to less than this, such as `self`, is as soon typed.
_MIN_CHARS = 5
_OPENERS = ("{", "(", "[", ":")
_LINE_END = re.compile(r"[ \t]*\n")


class Trimmed(NamedTuple):
    """What is left of a completion, and if that is nothing, why."""

    text: str
    reason: str | None


def trim(
    raw: str, text: str, start: int, end: int, stop_reason: str, language: str | None = None
) -> Trimmed:
    """Cut `raw`, which is to replace `text[start:end]`.

    Args:
        raw: what the model wrote at `start`.
        text: the document.
        start: where `raw` is inserted, in code points; usually the cursor.
        end: where the text after it begins; usually the cursor too.
        stop_reason: why the model stopped: "end", "stop", "length", "time" or "doubt". Where text
            stands behind the cursor on its line, "stop" means that it wrote a newline there.
        language: an LSP identifier. What does not parse in it is not offered; None tells nothing.

    Returns:
        The text to insert, with the line ends around it; when it is empty, with the reason in
        words.
    """
    around = sides(text, start, end)
    syntax = look(text, start, end, language)
    is_cut_off = stop_reason in CUT_OFF
    goes_on = stop_reason == DOUBT
    if goes_on:
        stop_reason = "end"
    raw = unified(raw)
    if not raw.strip():
        return Trimmed("", "the model proposed nothing")
    is_inside_line = bool(around.rest.strip())
    raw = drop_excess_indent(raw, around)
    kept = drop_loop(raw, around.prefix, is_cut_off)
    if not kept.strip() or (kept != raw and is_inside_line and stop_reason != "end"):
        return Trimmed("", "the completion repeated itself")
    if kept != raw:
        stop_reason = "end"  # whole again
    if is_inside_line and stop_reason != "end":
        filled = _filled(kept, around)
        if filled is None:
            return Trimmed("", "the model went on to another line than the text after the cursor")
        kept = filled
    else:
        of_block = drop_beyond_block(kept, around)
        if not of_block.strip():
            return Trimmed(
                "", "what the model proposed belongs below the block that the cursor is in"
            )
        reason_to_stop = stop_reason if of_block == kept else "end"  # whole again
        kept, reason = _whole_lines(of_block, around, reason_to_stop)
        if reason is not None:
            return Trimmed("", reason)
        kept = drop_rest_of_line(kept, around)
        kept = drop_taken_closers(kept, around.prefix, around.suffix)
    kept = drop_doubled_space(kept, around)
    if not is_inside_line:
        if kept.strip() and leaves_white_space(kept, around):
            return Trimmed("", "it would leave a line of nothing but indentation")
        whole, kept = kept.rstrip(), drop_bare_mark(kept).rstrip()
        if whole and not kept:
            return Trimmed("", "the model proposed the mark of a comment and nothing else")
    if not kept.strip():
        return Trimmed("", "the text after the cursor already has what the model proposed")
    if syntax is not None and syntax.num_errors == 0 and syntax.kind == "comment":
        kept = drop_after_comment(kept, around)
    if goes_on:
        right = _readable_so_far(kept, raw, around, syntax)
    else:
        right = _readable(kept, around, syntax, is_cut_off and not is_inside_line)
    if right is None and goes_on:
        return Trimmed("", "the model was not sure of a whole statement")
    if right is None:
        return Trimmed("", f"what the model proposed is no {language or 'code'} at this place")
    return Trimmed(right.replace("\n", around.line_end), None)


def _filled(kept: str, around: Sides) -> str | None:
    """Return what fills the place before the rest of the line, of a text that has a line end there.

    None where it does not run into that rest: then it belongs to a line of its own.
    """
    filled = before_rest(kept, around)
    return before_closer(kept, around) if filled is None else filled


def _whole_lines(kept: str, around: Sides, stop_reason: str) -> tuple[str, str | None]:
    """Return the lines that are new and whole, or the reason why there are none."""
    lines = kept.split("\n")
    if stop_reason in CUT_OFF:
        lines = drop_partial_line(lines, stop_reason)
        if not lines:
            assert stop_reason == TIME
            return "", "the time budget ended before a line was finished"
    lines = drop_repeats_within(lines)
    if repeats_above(lines, around):
        return "", "the completion repeated the lines above"
    lines = drop_lines_below(lines, around)
    if not lines:
        return "", "the completion repeated the lines below"
    return "\n".join(lines), None


def _readable(
    kept: str, around: Sides, syntax: Surroundings | None, is_cut_off: bool
) -> str | None:
    """Return the most of `kept` that the document's language can read at the place, if any."""
    for candidate in _candidates(kept, around):
        if is_cut_off and not (candidate := drop_comments_at_end(candidate)).strip():
            continue
        if is_cut_off and leaves_open(candidate) and not (syntax and syntax.parses_with(candidate)):
            continue
        if syntax is None or syntax.accepts(candidate, may_open=not is_cut_off):
            return candidate
    return None


def _readable_so_far(kept: str, raw: str, around: Sides, syntax: Surroundings | None) -> str | None:
    """Return the most of `kept` that can be read, of a text whose last line was to go on.

    Whoever takes it has a statement that is whole: neither an open string or bracket nor a point or
    an operator that waits for more, also where the text around it is broken as it is. What the
    model itself went on from to another line does not wait; in code that is being written, what
    that line opened may be open.
    """
    for candidate in chain(_shorter_lines(kept), _candidates(kept, around)):
        is_line = raw.startswith(candidate) and _LINE_END.match(raw, len(candidate)) is not None
        in_code = syntax is not None and syntax.kind == "code"
        may_open = is_line and in_code and candidate.endswith(_OPENERS)
        if not may_open and _is_unfinished(candidate, around, syntax, is_line=is_line):
            continue
        if syntax is None or syntax.accepts(candidate, may_open=may_open):
            return candidate
    return None


def _is_unfinished(text: str, around: Sides, syntax: Surroundings | None, *, is_line: bool) -> bool:
    """Whether a statement ends in the middle with `text`, which ends a line if `is_line`."""
    is_code = syntax is None or syntax.kind == "code" or leaves_string(around.before, text)
    in_code = not is_line and is_code
    language = None if syntax is None else syntax.language
    if in_code and (
        ends_in_name(around.before, text, language)
        or ends_in_keyword(around.before, text, language)
    ):
        return True
    if in_code and syntax is not None and syntax.waits_for_more(text):
        return True
    if in_code and language == "python" and begins_string(around.prefix, text):
        return True
    if syntax is not None and syntax.parses_with(text):
        return False
    return leaves_open(text) or (in_code and waits_for_more(around.before, text, language))


def _shorter_lines(kept: str) -> Iterator[str]:
    """Yield `kept`, then without the last token of its last line, and so on."""
    yield kept
    above, line_end, line = kept.rpartition("\n")
    for _ in range(_MAX_TOKEN_TRIES):
        line = without_last_token(line)
        if not line.strip() or len((above + line).strip()) < _MIN_CHARS:
            return
        yield above + line_end + line


def _candidates(kept: str, around: Sides) -> Iterator[str]:
    """Yield what may be offered, the most first."""
    yield kept
    if around.rest.strip():
        cut = overlap(kept, around)
        if cut is not None and cut.strip():
            yield drop_doubled_space(cut, around)
        return
    lines = kept.split("\n")
    for num_lines in _fewer(len(lines)):
        shorter = "\n".join(drop_lines_below(lines[:num_lines], around)).rstrip()
        if shorter.strip():
            yield shorter


def _fewer(num_lines: int) -> Iterator[int]:
    """Yield lower numbers of lines to try, the highest first.

    Below the first few they are powers of two whatever `num_lines` is: `settled.py` counts on it.
    """
    least = max(1, num_lines - _MAX_SINGLE_TRIES)
    yield from range(num_lines - 1, least - 1, -1)
    for exponent in range(least.bit_length() - 1, -1, -1):
        if 2**exponent < least:
            yield 2**exponent
