"""Which text goes where in the model's sequence, within its window.

Pure functions of text and cursor, at the cost of the window and not of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fim import FimTemplate

# The window's edges move in steps of this share of the budget, never per keystroke.
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a prompt.

    Attributes:
        kind: "special", "prefix", "suffix" or "tail".
        start: first code point of its text.
        end: code point after its text.
        token_ids: the tokens of a special segment, which has no text.
    """

    kind: str
    start: int = 0
    end: int = 0
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt.

    Attributes:
        segments: in the model's order; each is encoded on its own.
        healed_from: the prompt's text before the cursor ends here; what lies between it and the
            cursor is to be generated again. Equal to the cursor if nothing is.
    """

    segments: tuple[Segment, ...]
    healed_from: int


def lay_out(
    text: str,
    anchor: int,
    cursor: int,
    template: FimTemplate | None,
    layout: str,
    window_tokens: int,
    chars_per_token: float,
    start_id: int | None,
) -> Layout:
    """Arrange the text around the cursor for the model.

    Args:
        text: the document.
        anchor: where prefix and suffix met when the layout was frozen; what was typed since is
            `text[anchor:cursor]` and goes last. Equal to `cursor` in all layouts but "psm".
        cursor: where the completion is to go.
        template: the model's fill-in-the-middle format; None continues the text before the cursor.
        layout: "spm" (PRE SUF suffix MID prefix) or "psm" (PRE prefix SUF suffix MID tail); not
            looked at without a template.
        window_tokens: tokens of text to show.
        chars_per_token: characters a token stands for.
        start_id: token that begins a sequence, or None.
    """
    budget = int(window_tokens * chars_per_token)
    start, end = choose_window(text, anchor, cursor, budget, has_suffix=template is not None)
    healed_from = cursor
    if anchor == cursor and (template is None or template.heal_white_space):
        healed_from = start + len(text[start:cursor].rstrip())
    begins = (start_id,) if start_id is not None else ()
    if template is None:
        prefix = Segment("prefix", start, healed_from)
        return Layout((Segment("special", token_ids=begins), prefix), healed_from)
    begins = begins if template.bos_first else ()
    suffix = Segment("suffix", cursor, end)
    middle = Segment("special", token_ids=(template.middle_id,))
    if layout == "psm":
        segments = (
            Segment("special", token_ids=(*begins, template.prefix_id)),
            Segment("prefix", start, min(anchor, healed_from)),
            Segment("special", token_ids=(template.suffix_id,)),
            suffix,
            middle,
            Segment("tail", anchor, cursor),
        )
    else:
        marks = (template.prefix_id, template.suffix_id)  # one token in some families
        segments = (
            Segment("special", token_ids=(*begins, *dict.fromkeys(marks))),
            suffix,
            middle,
            Segment("prefix", start, healed_from),
        )
    return Layout(segments, healed_from)


def choose_window(
    text: str, anchor: int, cursor: int, budget: int, *, has_suffix: bool
) -> tuple[int, int]:
    """Return where the shown prefix starts and the shown suffix ends.

    The prefix gets three quarters of the budget and the suffix one, and either gets what the other
    does not need. Edges lie on a grid of an eighth of the budget, counted from the top of the file
    for the prefix and from its end for the suffix: typing between them moves neither until a whole
    step is due. Each is drawn in to the next line end, if there is one within a step.

    Args:
        text: the document.
        anchor: end of the prefix.
        cursor: start of the suffix.
        budget: characters to show.
        has_suffix: whether text after the cursor is shown at all.
    """
    step = max(1, budget // _STEPS)
    before, after = anchor, len(text) - cursor if has_suffix else 0
    if before + after <= budget:
        return 0, cursor + after
    quarter = budget // 4
    suffix_share = max(quarter, budget - _whole_steps(before, step))
    prefix_share = budget - min(quarter, _whole_steps(after, step))
    start, end = 0, cursor + after
    if before > prefix_share:
        start = _whole_steps(before - prefix_share, step)
        start = min(_next_line(text, start, start + step), anchor)
    if after > suffix_share:
        end -= _whole_steps(after - suffix_share, step)
        end = max(_last_line_end(text, end - step, end), cursor)
    return start, end


def _whole_steps(length: int, step: int) -> int:
    return -(-length // step) * step


def _next_line(text: str, start: int, limit: int) -> int:
    """Return the first line start from `start` on, of a line that ends before `limit`.

    Without one it is `start`, which is then not inside of a CRLF.
    """
    for line_end in ("\n", "\r"):
        found = text.find(line_end, start - 1, limit)
        if found >= 0:
            return found + (2 if text.startswith("\r\n", found) else 1)
    return start


def _last_line_end(text: str, limit: int, end: int) -> int:
    """Return the last line end after `limit` that is not after `end`.

    Without one it is `end`, or the place before it if that is inside of a CRLF.
    """
    if text.startswith("\r\n", end - 1):
        end -= 1
    for line_end in ("\n", "\r"):
        found = text.rfind(line_end, max(limit, 0), end)
        if found >= 0:
            return found + 1
    return end
