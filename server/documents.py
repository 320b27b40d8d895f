"""The open documents' text, where its lines begin, and LSP positions as code-point offsets.

Never pygls' copy: it splits lines at form feeds and U+2028. Here lines end at LF, CRLF and CR
only. An edit rescans the lines it touches, and no others; the whole is joined once a message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from .pieces import Pieces, Starts

_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
UTF8, UTF16, UTF32 = "utf-8", "utf-16", "utf-32"
_LINE_END = re.compile(r"\r\n|\n|\r")


class Position(NamedTuple):
    """An LSP position: 0-based line, and a character counted in the negotiated encoding's units."""

    line: int
    character: int


class Edit(NamedTuple):
    """`text` replaces code points `start` to `end` of the text before it."""

    start: int
    end: int
    text: str


class Change(NamedTuple):
    """One LSP content change; `start` None replaces the whole text."""

    text: str
    start: Position | None = None
    end: Position | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may be; beyond it is refused with a reason."""

    max_document_bytes: int
    max_line_chars: int


def line_starts(text: str, base: int) -> list[int]:
    """Return the offset after every line end of `text`, counted from `base`."""
    return [base + match.end() for match in _LINE_END.finditer(text)]


@dataclass
class Document:
    """One open document: its text, kept equal to the client's.

    Args:
        uri: the client's name for it.
        version: the client's version of the text.
        text: the whole text; a refused document over the size limit drops it.
        encoding: unit of `Position.character`: "utf-8", "utf-16" or "utf-32".
        limits: what is refused.
        language_id: what the client calls its language; "" if it did not say.
    """

    uri: str
    version: int
    text: str
    encoding: str
    limits: Limits
    language_id: str = ""
    refusal: str | None = field(init=False, default=None)
    _lost: str | None = field(init=False, repr=False, default=None)
    _pieces: Pieces = field(init=False, repr=False)  # the same text; ahead of it within `change`
    _starts: Starts = field(init=False, repr=False)
    _num_long: int = field(init=False, default=0)  # lines beyond the limit
    _num_bytes: int = field(init=False, default=0)
    _num_nuls: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Index the text."""
        self._set_text(self.text)

    @property
    def num_lines(self) -> int:
        """Lines of the text; one more than its line ends."""
        return len(self._starts)

    def change(self, changes: list[Change], version: int) -> list[Edit] | None:
        """Apply LSP changes in order, each to the text after the one before it.

        Returns:
            The same changes as code-point edits, each in offsets of the text after the one before
            it; None when the text was replaced as a whole or is not held.
        """
        self.version = version
        edits: list[Edit] | None = []
        for one in changes:
            if one.start is None or one.end is None:
                self._set_text(one.text)
                edits = None
            elif self._lost is None:
                edit = self._resolve(one.start, one.end, one.text)
                self._replace(edit)
                if edits is not None:
                    edits.append(edit)
        self.text = str(self._pieces)
        self._check()
        return edits if self._lost is None else None

    def lose(self, reason: str) -> None:
        """Note that the client's text is not known any more; a whole new text mends it."""
        self._lost = f"{reason}: close the document and open it again"
        self._check()

    def limit(self, limits: Limits) -> None:
        """Check the document against other limits from now on."""
        self.limits = limits
        self._num_long = self._count_long(0, len(self._starts))
        self._check()

    def offset(self, position: Position) -> int:
        """Return the code-point offset of `position`; beyond the line or the text it clamps.

        A position inside a character (half of a surrogate pair, part of a UTF-8 sequence) means
        the character's start.
        """
        return self._locate(position)[0]

    def position(self, offset: int) -> Position:
        """Return the LSP position of code-point `offset`, which must lie in the text."""
        line = self._starts.part_of(offset)
        before = self._pieces.part(self._starts[line], offset)
        return Position(line, num_units(before, self.encoding))

    def line(self, line: int) -> str:
        """Return the text of a line (0-based, in range) without its line end."""
        start, end = self._line_span(line)
        return self._pieces.part(start, end)

    def _set_text(self, text: str) -> None:
        self._lost = None
        self._num_bytes = _num_bytes(text)
        self._num_nuls = text.count("\0")
        # A text over the limit is dropped by _check: it need not be cut, nor its lines be found.
        is_held = self._num_bytes <= self.limits.max_document_bytes
        self._hold(text if is_held else "")
        self._starts = Starts([0, *line_starts(self.text, 0)])
        self._num_long = self._count_long(0, len(self._starts))
        self._check()

    def _hold(self, text: str) -> None:
        self.text, self._pieces = text, Pieces(text)

    def _count_long(self, first: int, last: int) -> int:
        """Return how many of the lines `first` to `last` are longer than they may be."""
        return sum(length > self.limits.max_line_chars for length in self._lengths(first, last))

    def _lengths(self, first: int, last: int) -> list[int]:
        """Return lengths of lines in characters, line ends included."""
        starts = [self._starts[line] for line in range(first, min(last + 1, len(self._starts)))]
        if last == len(self._starts):
            starts.append(len(self._pieces))
        return [after - before for before, after in pairwise(starts)]

    def _check(self) -> None:
        limits = self.limits
        if self._lost is None and self._num_bytes > limits.max_document_bytes:
            self._lost = (
                f"{self._num_bytes} bytes are more than max_document_bytes = "
                f"{limits.max_document_bytes}: raise that setting and open the document again"
            )
        self.refusal = self._lost
        if self._lost is not None:
            self._hold("")
            self._starts, self._num_long = Starts([0]), 0
            return
        if self._num_nuls:
            self.refusal = "it contains NUL characters, so it is taken for a binary file"
            return
        if self._num_long:
            longest = max(self._lengths(0, len(self._starts)))
            self.refusal = (
                f"a line of {longest} characters, line end included, is longer than "
                f"max_line_chars = {limits.max_line_chars}: break the line or raise that setting"
            )

    def _locate(self, position: Position) -> tuple[int, int]:
        """Return the offset, and how many UTF-16 units `position` lies inside the character."""
        if position.line >= len(self._starts):
            return len(self._pieces), 0
        start, end = self._line_span(max(0, position.line))
        wanted = max(0, position.character)
        line = self._pieces.part(start, end)
        if wanted >= len(line) * _WIDEST[self.encoding]:
            return end, 0
        if self.encoding == UTF32 or line.isascii():
            return start + min(wanted, len(line)), 0
        widths = accumulate(_widths(line, self.encoding))
        before = 0
        for index, after in enumerate(widths):
            if wanted < after:
                return start + index, wanted - before
            before = after
        return end, 0

    def _line_span(self, line: int) -> tuple[int, int]:
        start = self._starts[line]
        if line + 1 == len(self._starts):
            return start, len(self._pieces)
        end = self._starts[line + 1] - 1
        if end > start and self._pieces[end] == "\n" and self._pieces[end - 1] == "\r":
            end -= 1
        return start, end

    def _resolve(self, first: Position, last: Position, text: str) -> Edit:
        start, start_inside = self._locate(first)
        end, end_inside = self._locate(last)
        if (end, end_inside) < (start, start_inside):
            start, start_inside, end, end_inside = end, end_inside, start, start_inside
        if self.encoding != UTF16:
            return Edit(start, end, text)
        # A UTF-16 client may cut a pair: its halves stay behind as lone surrogates, as they do in
        # the client's own text, and halves that meet become one character.
        if start_inside:
            text = _halves(self._pieces[start])[0] + text
        if end_inside:
            text += _halves(self._pieces[end])[1]
            end += 1
        follower = text[:1] or self._pieces.part(end, end + 1)
        if _is_high(self._pieces.part(start - 1, start)) and _is_low(follower):
            start -= 1
            text = self._pieces[start] + text
        if _is_low(self._pieces.part(end, end + 1)) and _is_high(text[-1:]):
            text += self._pieces[end]
            end += 1
        return Edit(start, end, _SPLIT_PAIR.sub(_join, text))

    def _replace(self, edit: Edit) -> None:
        start, end, new = edit
        old = self._pieces.part(start, end)
        self._num_bytes += _num_bytes(new) - _num_bytes(old)
        self._num_nuls += new.count("\0") - old.count("\0")
        # The line before is scanned too when its "\r" may meet a "\n".
        starts = self._starts
        first, next_line = starts.part_of(max(0, start - 1)), starts.part_of(end) + 1
        self._num_long -= self._count_long(first, next_line)
        scan_start = starts[first]
        scan_end = starts[next_line] if next_line < len(starts) else len(self._pieces)
        delta = len(new) - (end - start)
        region = self._pieces.part(scan_start, start) + new + self._pieces.part(end, scan_end)
        self._pieces.replace(start, end, new)
        found = line_starts(region, scan_start)
        # The end of the region is a line start already known, unless it is the end of the text.
        if next_line < len(starts) and found and found[-1] == scan_end + delta:
            found.pop()
        starts.replace(first + 1, next_line, found, delta)
        self._num_long += self._count_long(first, first + 1 + len(found))


_WIDEST = {UTF8: 4, UTF16: 2, UTF32: 1}


def num_units(text: str, encoding: str) -> int:
    """Return the length of `text` in units of `encoding`."""
    if encoding == UTF32 or text.isascii():
        return len(text)
    return sum(_widths(text, encoding))


def _widths(text: str, encoding: str) -> list[int]:
    if encoding == UTF16:
        return [1 + (char > "\uffff") for char in text]
    return [1 + (char > "\x7f") + (char > "\u07ff") + (char > "\uffff") for char in text]


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(UTF8, "surrogatepass"))


def _halves(char: str) -> tuple[str, str]:
    code = ord(char) - 0x10000
    return chr(0xD800 + (code >> 10)), chr(0xDC00 + (code & 0x3FF))


def _join(match: re.Match[str]) -> str:
    high, low = match.group()
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))


def _is_high(char: str) -> bool:
    return "\ud800" <= char <= "\udbff"


def _is_low(char: str) -> bool:
    return "\udc00" <= char <= "\udfff"
