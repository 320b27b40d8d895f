"""A completion shown in its place on a terminal: some lines around it, itself highlighted.

Rich knows what the terminal can show (colours, NO_COLOR, dumb ones), and is imported only here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ..engine.syntax.region import unified

_LINES_ABOVE = 3
_LINES_BELOW = 2
_AROUND, _COMPLETION, _GUTTER = "dim", "bold green", "dim cyan"
# Control characters would steer the terminal; Unicode has pictures of them.
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


class InPlace:
    """One completion on standard output, which is a terminal. Nothing shown is taken back."""

    def __init__(self, text: str, offset: int, before_first: Callable[[], None]) -> None:
        """Show nothing yet.

        Args:
            text: the document.
            offset: the cursor, in code points.
            before_first: called before anything is shown, to clear the line.
        """
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._before = unified(text[:offset]).split("\n")
        self._after = unified(text[offset:]).split("\n")
        self._before_first = before_first
        self._shown = ""
        self._line = len(self._before)
        bar = "|" if self._console.options.ascii_only else "│"
        width = max(3, len(str(self._line)))
        self._gutter = f"{{:>{width}}} {{}}{bar} "

    @property
    def has_begun(self) -> bool:
        """Whether something is shown."""
        return bool(self._shown)

    def show(self, text: str) -> None:
        """Show what there is beyond what was shown; `text` begins with that."""
        if not self._shown and not text:
            return
        if not self._shown:
            self._before_first()
            self._begin()
        first, *more = unified(text[len(self._shown) :]).split("\n")
        self._write(first, _COMPLETION)
        for line in more:
            self._line += 1
            self._write("\n")
            self._write(self._gutter.format(self._line, "+"), _GUTTER)
            self._write(line, _COMPLETION)
        self._shown = text

    def end(self, text: str) -> None:
        """Show the whole completion and the lines below it; nothing if there is none."""
        if not text.startswith(self._shown):  # a host that died was answered for by another
            self._write("\n")
            self._shown, self._line = "", len(self._before)
        self.show(text)
        if not self._shown:
            return
        rest, *below = self._after
        self._write(rest, _AROUND)
        self._write("\n")
        if below[-1:] == [""]:
            below.pop()  # no line stands behind the last line end
        for number, line in enumerate(below[:_LINES_BELOW], self._line + 1):
            self._write_line(number, line)

    def _begin(self) -> None:
        first = max(0, self._line - 1 - _LINES_ABOVE)
        for number, line in enumerate(self._before[first:-1], first + 1):
            self._write_line(number, line)
        self._write(self._gutter.format(self._line, "+"), _GUTTER)
        self._write(self._before[-1], _AROUND)

    def _write_line(self, number: int, line: str) -> None:
        self._write(self._gutter.format(number, " "), _GUTTER)
        self._write(line + "\n", _AROUND)

    def _write(self, text: str, style: str = "") -> None:
        shown = text.translate(_VISIBLE).encode("utf-8", "replace").decode()
        encoding = self._console.encoding
        shown = shown.encode(encoding, "replace").decode(encoding, "replace")
        self._console.print(Text(shown, style), end="")
