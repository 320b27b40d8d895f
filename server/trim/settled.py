"""What of a completion that is still being written will be offered, whatever follows.

A terminal cannot take back what it shows. Whole lines are let through, one, two, four, eight …, as
soon as no rule can cut them any more; each condition here is the counterpart of a rule of `trim`.
"""

from __future__ import annotations

from ...engine.syntax.region import unified
from ...engine.syntax.surroundings import look
from .brackets import leaves_open, num_paired, scan
from .comment import drop_bare_mark
from .cut_off import drop_comments_at_end
from .indentation import drop_beyond_block, drop_excess_indent
from .lines import says_something, sides
from .repeats import MAX_PERIOD_LINES, drop_repeats_within, loop_start, stops_loops
from .spacing import drop_doubled_space, leaves_white_space


class Settling:
    """The beginning of one completion, as it grows."""

    def __init__(self, text: str, start: int, end: int, language: str | None) -> None:
        """Look at the place; arguments as of `trim`."""
        self._around = sides(text, start, end)
        self._syntax = look(text, start, end, language)
        self._opened = scan(self._around.prefix, [])[0]
        self._text = ""
        self._num_lines = self._num_seen = 0

    def settled(self, raw: str) -> str:
        """Return what `trim` will return the whole of, or more, once the completion has ended.

        Args:
            raw: what is written so far; the completion begins with it. It must not become shorter
                from one call to the next.

        Returns:
            A text that only grows; "" until something is certain.
        """
        lines = unified(raw.removesuffix("\r")).split("\n")[:-1]
        if len(lines) == self._num_seen:
            return self._text
        self._num_seen = len(lines)
        count = max(1, 2 * self._num_lines)
        while count <= len(lines):
            text = self._lasting(lines, count)
            if text is not None:
                self._num_lines = count
                self._text = text.replace("\n", self._around.line_end)
            count *= 2
        return self._text

    def _lasting(self, lines: list[str], count: int) -> str | None:
        """Return the first `count` of the whole lines as they will be offered, None if not yet."""
        around = self._around
        if self._syntax is not None and self._syntax.end_tag:
            return None
        right = drop_excess_indent("\n".join(lines), around).split("\n")
        if right[1:count] != lines[1:count]:
            return None  # whether they are indented less depends on the lines to come
        lines, kept = right, right[:count]
        is_in_line = bool(around.rest.strip())  # what matters there is how the line ends
        if (
            is_in_line
            or not kept[-1].strip()
            or self._is_comment()
            or self._may_repeat(lines, kept)
        ):
            return None
        text = "\n".join(kept)
        if drop_beyond_block(text, around) != text:
            return None
        text = drop_bare_mark(drop_doubled_space(text, around)).rstrip()
        if not text or leaves_white_space(text, around):
            return None
        if self._loses_closer(text):
            return None
        shorter = drop_comments_at_end(text)
        if self._syntax is None:
            return None if leaves_open(shorter) else shorter
        if leaves_open(shorter) and not self._syntax.parses_with(shorter):
            return None
        is_read = self._syntax.accepts(text, may_open=True)
        return shorter if is_read and self._syntax.accepts(shorter, may_open=False) else None

    def _is_comment(self) -> bool:
        syntax = self._syntax
        return syntax is not None and syntax.num_errors == 0 and syntax.kind == "comment"

    def _may_repeat(self, lines: list[str], kept: list[str]) -> bool:
        """Whether what is written next can make `kept`, or its end, a repetition."""
        count = len(kept)
        if loop_start("\n".join(lines) + "\n", False) is not None:
            return True  # it is being cut
        if not any(map(stops_loops, lines[count - 1 :])):
            return True
        if kept[-1] in kept[-1 - MAX_PERIOD_LINES : -1] or drop_repeats_within(kept) != kept:
            return True
        before = self._around.before
        # The rule for lines above sees the first line without the white space before it.
        whole = [before + kept[0], before.rstrip() + kept[0], *kept]
        whole = [line.rstrip() for line in whole if line.strip()]
        above = [line.rstrip() for line in self._around.prefix.split("\n")[:-1] if line.strip()]
        below = [line.rstrip() for line in self._around.suffix.split("\n")[1:] if line.strip()]
        near = [line for line in above[-2:] if says_something([line])] + below[:1]
        return any(line in whole for line in near)

    def _loses_closer(self, text: str) -> bool:
        """Whether `text` has a closer that the suffix may have, too."""
        if self._opened is None or num_paired(self._around.suffix, self._opened) == 0:
            return False
        return bool(scan(text, self._opened)[1])
