"""Which text goes where in the model's sequence, within its window.

Pure functions of text and cursor, at the cost of the window and not of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fim import FimTemplate

Ints = NDArray[np.int64]

# The window's edges move in steps of this share of the budget, never per keystroke.
STEPS = 8


SegmentKey = tuple[str, ...]
# The mark behind a prompt that says what is wanted, for models that were trained to see it.
WANTED_KEY: SegmentKey = ("marks", "wanted")


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a prompt, encoded on its own.

    Attributes:
        key: names it among a document's prompts: rows are only reused within one segment. Its first
            word is "marks", "header", "prefix", "suffix" or "tail".
        token_ids: special tokens that it begins with.
        text: what follows them.
    """

    key: SegmentKey
    token_ids: tuple[int, ...] = ()
    text: str = ""

    @property
    def kind(self) -> str:
        """The first word of its key."""
        return self.key[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt.

    Attributes:
        segments: in the model's order.
        window: where the shown text begins and ends.
        prompt_end: the prompt's text before the cursor ends here; what lies between it and the
            cursor is to be generated again. Equal to the cursor if nothing is.
    """

    segments: tuple[Segment, ...]
    window: tuple[int, int]
    prompt_end: int


def lay_out(
    text: str,
    anchor: int,
    cursor: int,
    template: FimTemplate | None,
    layout: str,
    window: tuple[int, int],
    start_id: int | None,
    header: str = "",
    others: Sequence[tuple[str, str]] = (),
    repository: str = "",
    wanted: str = "",
) -> Layout:
    r"""Arrange the text around the cursor for the model.

    Args:
        text: the document, with "\n" for every line end.
        anchor: where prefix and suffix met when the layout was frozen; what was typed since is
            `text[anchor:cursor]` and goes last. Equal to `cursor` in all layouts but "psm".
        cursor: where the completion is to go.
        template: the model's fill-in-the-middle format; None continues the text before the cursor.
        layout: "spm" (PRE SUF suffix MID prefix, or SUF suffix PRE prefix MID) or "psm" (PRE prefix
            SUF suffix MID tail); not looked at without a template.
        window: where the shown text begins and ends, as from `choose_window`.
        start_id: token that begins a sequence, or None.
        header: the file's path, to be said first to a model that knows headers; "" says nothing.
        others: path and text of other files, to be shown first to such a model.
        repository: name of the repository that they are of, likewise.
        wanted: what the middle is to be, one of `wire.config.WANTED`, for a model that knows a mark
            for it; "" says nothing. The mark is the last segment, also where text is to be
            generated again: in training it stands behind the prompt's last token, so that no other
            row depends on it.
    """
    start, end = window
    prompt_end = cursor
    if anchor == cursor and (template is None or template.regenerate_white_space):
        prompt_end = start + len(text[start:cursor].rstrip())
    begins = (start_id,) if start_id is not None else ()
    if template is None:
        prefix = Segment(("prefix",), text=text[start:prompt_end])
        return Layout((Segment(("marks", "first"), begins), prefix), window, prompt_end)
    begins = begins if template.bos_first else ()
    segments, begins, path = _files(template, begins, header, others, repository)
    suffix = Segment(("suffix",), text=text[cursor:end])
    middle = Segment(("marks", "middle"), (template.middle_id,))
    space = " " if layout in template.spaced_layouts else ""
    shown = Segment(("prefix",), text=space + text[start : min(anchor, prompt_end)])
    prefix = (*path, shown)
    if layout == "psm":
        segments += (
            Segment(("marks", "first"), (*begins, template.prefix_id)),
            *prefix,
            Segment(("marks", "suffix"), (template.suffix_id,)),
            suffix,
            middle,
            Segment(("tail",), text=text[anchor:cursor]),
        )
    elif template.middle_last:
        segments += (
            Segment(("marks", "first"), (*begins, template.suffix_id)),
            suffix,
            Segment(("marks", "prefix"), (template.prefix_id,)),
            *prefix,
            middle,
        )
    else:
        marks = (template.prefix_id, template.suffix_id)  # one token in some families
        segments += (
            Segment(("marks", "first"), (*begins, *dict.fromkeys(marks))),
            suffix,
            middle,
            *prefix,
        )
    if wanted and (wanted_id := template.wanted_id(wanted)) is not None:
        segments.append(Segment(WANTED_KEY, (wanted_id,)))
    return Layout(tuple(segments), window, prompt_end)


def _files(
    template: FimTemplate,
    begins: tuple[int, ...],
    header: str,
    others: Sequence[tuple[str, str]],
    repository: str,
) -> tuple[list[Segment], tuple[int, ...], tuple[Segment, ...]]:
    r"""Return what comes before the prompt's own marks, as the model saw it in training.

    Args:
        template: the model's format.
        begins: tokens that the sequence starts with.
        header: as for `lay_out`; likewise the next two.
        others: path and text of other files.
        repository: name of the repository.

    Returns:
        Its segments, the tokens that the first mark follows at once, and what the text before the
        cursor follows at once: the path, in a format that has it there.
    """
    segments: list[Segment] = []
    ids, is_inside = template.header_ids, template.files == "inside"
    if repository and template.repository_ids:
        # As published, StarCoder2's paths follow the name at once, Qwen's stand below it.
        name = repository if is_inside else repository + "\n"
        before = (*begins, *template.repository_ids)
        segments, begins = [Segment(("header", "repository"), before, name)], ()

    def mark() -> tuple[int, ...]:
        return ids if segments or template.files != "separated" else ()

    for path, content in others if ids else ():
        segments.append(Segment(("header", path), (*begins, *mark()), f"{path}\n{content}"))
        begins = ()
    if not ids or (is_inside and not segments):
        return segments, begins, ()
    if not header:
        return segments, (*begins, *(() if template.files == "marked" else mark())), ()
    # In training, too, the path is in one piece with its line end.
    if is_inside:
        return segments, (*begins, *ids), (Segment(("header",), text=header + "\n"),)
    return [*segments, Segment(("header",), (*begins, *mark()), header + "\n")], (), ()


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
    step = max(1, budget // STEPS)
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


def narrow_window(
    text: str,
    anchor: int,
    cursor: int,
    window: tuple[int, int],
    prefix_starts: Ints,
    suffix_starts: Ints,
    num_tokens: int,
    step: int,
) -> tuple[int, int]:
    """Return the edges of a window that must show less than `choose_window` gave it.

    The shares are as there, in tokens. Of the places that leave an edge at least four fifths of its
    share the roundest is taken: on the same grid, or on one of a half, a quarter and so on of its
    step where the text is so dense that no line of that lies among them. So the edges are a
    function of the text alone, move by steps too, and do not jump when those of the wider window
    do.

    Args:
        text: the document.
        anchor: end of the prefix.
        cursor: start of the suffix.
        window: the wider one.
        prefix_starts: where each token of its prefix begins in `text`, (n,).
        suffix_starts: likewise of the suffix, (m,).
        num_tokens: tokens to show.
        step: of the grid, in code points.
    """
    num_before, num_after = len(prefix_starts), len(suffix_starts)
    quarter, part = num_tokens // 4, max(1, num_tokens // STEPS)
    suffix_share = max(quarter, num_tokens - _whole_steps(num_before, part))
    prefix_share = num_tokens - min(quarter, _whole_steps(num_after, part))
    start, end = window
    places = np.append(prefix_starts, anchor)
    if num_before > prefix_share:
        first = num_before - prefix_share
        last = first + prefix_share // 5
        start, reach = _roundest(int(places[first]), int(places[last]), step)
        start = min(_next_line(text, start, start + reach), anchor)
    if num_after > suffix_share:
        first = suffix_share - suffix_share // 5
        farthest, nearest = (len(text) - int(suffix_starts[at]) for at in (suffix_share, first))
        behind, reach = _roundest(farthest, nearest, step)
        end = max(_last_line_end(text, len(text) - behind - reach, len(text) - behind), cursor)
    return start, end


def _roundest(low: int, high: int, step: int) -> tuple[int, int]:
    """Return the first multiple of a step in [low, high], and the step, halved until there is one.

    Halves are rounded down, but every multiple of a step is one of all its parts.
    """
    halvings = 0
    while True:
        at = -(-(low << halvings) // step) * step >> halvings
        if at <= high:
            return at, max(1, step >> halvings)
        halvings += 1


def _whole_steps(length: int, step: int) -> int:
    return -(-length // step) * step


def _next_line(text: str, start: int, limit: int) -> int:
    """Return the first line start from `start` on, of a line that ends before `limit`.

    Without one it is `start`.
    """
    return text.find("\n", start - 1, limit) + 1 or start


def _last_line_end(text: str, limit: int, end: int) -> int:
    """Return the last line end after `limit` that is not after `end`; without one it is `end`."""
    return text.rfind("\n", max(limit, 0), end) + 1 or end
