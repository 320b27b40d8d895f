r"""A document as its editor has it and as the model is shown it: with "\n" for every line end.

The model has never seen a "\r" (training drops them), and the tokens of a file must not depend on
how its lines end. Offsets from outside are the editor's; what is laid out and encoded is `shown`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..wire.errors import BadPosition
from ..wire.texts import common_ends

# (start, end, text) in code points: text[start:end] becomes `text`.
Edit = tuple[int, int, str]


class Document:
    r"""A text that is edited, and the same text with "\n" for each "\r\n" and each lone "\r".

    Cost: an edit copies the text, and the shown one if that is another; line ends are counted only
    between the edit and the place looked at before it.

    Attributes:
        text: as the editor has it.
        shown: as the model is shown it; `text` itself if there is no "\r" in it.
    """

    def __init__(self, text: str) -> None:
        """Start with a text."""
        self.text = text
        self.shown = _with_line_feeds(text)
        # A place as an offset in `text` and in `shown`, never between "\r" and "\n".
        self._known = (0, 0)

    def edit(self, edits: Sequence[Edit]) -> list[Edit]:
        """Apply edits to the text, all in offsets before any of them.

        Returns:
            What they do to `shown`, ascending, likewise in offsets before any of them; nothing if
            they only change how lines end.

        Raises:
            BadPosition: an edit lies outside the text or two overlap; nothing was changed.
        """
        ordered = sorted(edits, key=lambda edit: edit[:2])
        reached = 0
        for start, end, _ in ordered:
            if not reached <= start <= end <= len(self.text):
                raise BadPosition(
                    f"edit [{start}, {end}) overlaps another or leaves the text of "
                    f"{len(self.text)} characters; send the whole text"
                )
            reached = end
        if self.shown is self.text and not any("\r" in text for *_, text in ordered):
            self.text = self.shown = _applied(self.text, ordered)
            return ordered
        of_shown = self._to_shown(ordered)
        self.text = _applied(self.text, ordered)
        self.shown = _applied(self.shown, of_shown)
        if "\r" not in self.text:
            self.shown, self._known = self.text, (0, 0)
        return of_shown

    def set_text(self, text: str) -> list[Edit]:
        """Replace the whole text; return what that does to `shown`, at most one edit."""
        before = self.shown
        self.text, self.shown, self._known = text, _with_line_feeds(text), (0, 0)
        return _difference(0, before, self.shown)

    def shown_offset(self, offset: int) -> int:
        r"""Return where a place of `text` lies in `shown`; one inside of a "\r\n" is before it."""
        if self.shown is self.text:
            return offset
        if self.text.startswith("\r\n", offset - 1):
            offset -= 1
        known, shown = self._known
        if known <= offset:
            shown += offset - known - self.text.count("\r\n", known, offset)
        else:
            shown -= known - offset - self.text.count("\r\n", offset, known)
        self._known = offset, shown
        return shown

    def text_offset(self, shown_offset: int) -> int:
        r"""Return where a place of `shown` lies in `text`; never inside of a "\r\n"."""
        if self.shown is self.text:
            return shown_offset
        known, shown = self._known if self._known[1] <= shown_offset else (0, 0)
        at = nearest = known + shown_offset - shown
        # Each round passes the line ends that the one before it has brought into reach.
        while (offset := nearest + self.text.count("\r\n", known, at)) > at:
            at = offset
        return at + self.text.startswith("\r\n", at - 1)

    def _to_shown(self, ordered: Sequence[Edit]) -> list[Edit]:
        """Return what ascending edits of `text` do to `shown`; skip those that do nothing."""
        text = self.text
        found: list[Edit] = []
        # From the last to the first: then the known place lies before all of them.
        for start, end, inserted in reversed(_joined(text, ordered)):
            first, last, new = start, end, inserted
            # Half of a pair that the edit splits or joins is taken into it.
            after = inserted + text[end : end + 1]
            if text[max(0, start - 1) : start] == "\r" and "\n" in (
                text[start : start + 1],
                after[:1],
            ):
                first, new = start - 1, "\r" + new
            before = text[max(0, start - 1) : start] + inserted
            if text.startswith("\n", end) and "\r" in (text[end - 1 : end], before[-1:]):
                last, new = end + 1, new + "\n"
            at, removed = self.shown_offset(first), text[first:last]
            old_lines, new_lines = _with_line_feeds(removed), _with_line_feeds(new)
            if (first, last) == (start, end) and old_lines is removed and new_lines is new:
                found.append((at, at + len(removed), new))
            else:
                found += _difference(at, old_lines, new_lines)
        return found[::-1]


def shifted(offset: int, edits: Sequence[Edit], *, after_insertion: bool) -> int:
    """Return where an offset lies after edits that are sorted and in offsets before any of them.

    Args:
        offset: before the edits.
        edits: ascending.
        after_insertion: whether text inserted right at the offset, or in place of what is around
            it, comes to lie before it.
    """
    moved = offset
    for start, end, text in edits:
        if end < offset or (end == offset and (start < end or after_insertion)):
            moved += len(text) - (end - start)
        elif start < offset:
            moved += start - offset + (len(text) if after_insertion else 0)
    return moved


def _with_line_feeds(text: str) -> str:
    r"""Return a text with "\n" for every line end; itself if it has no other."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _applied(text: str, edits: Sequence[Edit]) -> str:
    pieces, reached = [], 0
    for start, end, inserted in edits:
        pieces += [text[reached:start], inserted]
        reached = end
    return "".join([*pieces, text[reached:]])


def _difference(at: int, old: str, new: str) -> list[Edit]:
    """Return the one edit that turns `old`, which lies at `at`, into `new`; none if they agree."""
    if old == new:
        return []
    start, tail = common_ends(old, new)
    return [(at + start, at + len(old) - tail, new[start : len(new) - tail])]


def _joined(text: str, edits: Sequence[Edit]) -> list[Edit]:
    """Make one of edits with at most one character between them: they may share a line end."""
    joined: list[Edit] = []
    for start, end, inserted in edits:
        if joined and start - joined[-1][1] <= 1:
            first, last, before = joined[-1]
            joined[-1] = (first, end, before + text[last:start] + inserted)
        else:
            joined.append((start, end, inserted))
    return joined
