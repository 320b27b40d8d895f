"""One text as the engine gets it: every credential is a placeholder of the same length.

Every offset stays true, so edits, windows and cursors need no mapping. A line is looked at by
itself; what one line hands to the next is only whether a private key goes on (PEM, OpenSSH, PGP,
PuTTY). So an edit scans the lines it touches, and those behind it until that agrees with before.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import string
from collections.abc import Iterable, Iterator, Sequence

from ...engine.wire.errors import EngineError
from ..documents import Edit
from ..pieces import Pieces, Starts
from .rules import CONFIG_LANGUAGES, Span, found, line_start, line_stop

# So many characters of a placeholder in a completion are no chance; of a shorter one, all are told.
_NUM_TELLING = 8
_NUM_SHORTEST = 6
# So much is looked at in some 20 ms.
_SLICE_CHARS = 30_000
_LINE_CHARS = 128
# What passwords have beside letters and digits, but for what may be structure: "-_.:/=".
_SYMBOLS = "!@#$%^&*+?~|"
_BEGIN = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|Private-Lines: ?\d+"
)
_KEY_CUES = ("PRIVATE KEY", "Private-Lines")
_END = re.compile(r"-----END ")
# A line within a key: its base64, maybe quoted, indented, commented or joined in a program.
_BODY = re.compile(
    r"[\s\"'`#*/+.(]{0,80}(?:[A-Za-z0-9+/=]|\\[nr])*[\s\"'`,;+.\\)]{0,80}"
    r"|[\s\"'#*/]{0,80}(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): .{0,200}"
)
_WORD = re.compile(r"\s*[a-z]{1,15}\W*")
# What may follow the first line of a key on that line, if it is one and not a mention of it.
_OPENED = re.compile(r"(?:\\[nr]|[\s\"'`,;+.\\)(])*(?P<key>[A-Za-z0-9+/=]{16})?")
_HEADER = re.compile(r"[\s\"'#*/]{0,80}[A-Z][A-Za-z-]*: ")
_KEY_TEXT = re.compile(r"\\[nrt]|[A-Za-z0-9+/=]{4,}")


class HoldsSecret(EngineError):
    """A completion is nothing without the placeholder in it."""


class Masked:
    """A text, what hides its secrets, and both after any edit.

    Args:
        text: the whole text.
        language: an LSP identifier; in some, values stand without quotes.
        spans: those of credentials on a line, where they are known.
    """

    def __init__(self, text: str, language: str, spans: list[Span] | None = None) -> None:
        """Find the secrets of the whole text."""
        self._is_config = language in CONFIG_LANGUAGES
        self._plain = Pieces(text)
        keys, turns = _keys_of(text)
        spans = _joined(keys + (found(text, self._is_config) if spans is None else spans))
        self._span_starts = Starts(start for start, _ in spans)
        self._span_lengths = [end - start for start, end in spans]
        # Line starts at which "a private key goes on" begins or ends, by turns.
        self._turns = Starts(turns)

    @property
    def plain(self) -> str:
        """The true text."""
        return str(self._plain)

    @property
    def text(self) -> str:
        """The text that the engine may see, of the same length."""
        return _hidden(self.plain, 0, self.spans)

    @property
    def spans(self) -> Sequence[Span]:
        """Where secrets are, in order; they do not overlap."""
        return self._spans_of(0, len(self._span_lengths))

    def edit(self, edits: Iterable[Edit]) -> list[Edit]:
        """Apply edits of the true text, each in the text after the one before it.

        Returns:
            The edits that make the same of the masked text, in the same manner. There are more
            where a secret came or went beside an edit.
        """
        return [masked for edit in edits for masked in self._edit(edit)]

    def _edit(self, edit: Edit) -> Iterator[Edit]:
        start, end, new = edit
        removed = self._plain.part(start, end)
        self._plain.replace(start, end, new)
        moved = len(new) - (end - start)
        first = _line_start(self._plain, start)
        spans, turns, last = self._scan(first, edit)
        now = self._plain.part(first, last)
        here, behind = start - first, start - first + len(new)
        low, high = (_num_below(self._span_starts, at) for at in (first, last - moved))
        old = now[:here] + removed + now[behind:]
        before = _hidden(old, first, self._spans_of(low, high))
        after = _hidden(now, first, spans)
        self._span_starts.replace(low, high, [start for start, _ in spans], moved)
        self._span_lengths[low:high] = [end - start for start, end in spans]
        kept, gone = (_num_below(self._turns, at + 1) for at in (first, last - moved))
        self._turns.replace(kept, gone, turns, moved)
        yield Edit(start, end, after[here:behind])
        yield from _difference(before[:here], after[:here], first)
        yield from _difference(before[behind - moved :], after[behind:], start + len(new))

    def _spans_of(self, low: int, high: int) -> list[Span]:
        """Return the secrets from one to another, by their number."""
        starts = [self._span_starts[number] for number in range(low, high)]
        lengths = self._span_lengths[low:high]
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def _scan(self, first: int, edit: Edit) -> tuple[list[Span], list[int], int]:
        """Look at lines from `first` on until an edit has no more effect.

        Returns:
            The secrets in these lines, the turns behind `first`, and the end of the lines.
        """
        plain = self._plain
        known = edit.start + len(edit.text)
        moved = len(edit.text) - (edit.end - edit.start)
        is_key = self._goes_on(first)
        spans: list[Span] = []
        turns: list[int] = []
        while True:
            stop = _line_stop(plain, first)
            line = plain.part(first, stop)
            here, goes_on = _keys_in(line, is_key)
            here += found(line, self._is_config)
            spans += [(first + start, first + end) for start, end in here]
            if stop == len(plain):
                return _joined(spans), turns, stop
            first = stop + 1
            if goes_on != is_key:
                turns.append(first)
            is_key = goes_on
            if stop >= known and self._goes_on(first - moved) == is_key:
                return _joined(spans), turns, first

    def _goes_on(self, line_start: int) -> bool:
        """Whether a line is within a private key, as far as is known."""
        return self._turns.part_of(line_start) % 2 == 0

    def num_safe(self, completion: str) -> int:
        """Return how many characters of a completion stand before a placeholder of this text."""
        if not self._span_lengths or not completion:
            return len(completion)
        shown = "\n".join(placeholder(self._plain.part(*span)) for span in self.spans)
        short = [one for one in shown.split("\n") if _NUM_SHORTEST <= len(one) < _NUM_TELLING]
        safe = min((at for one in short if (at := completion.find(one)) >= 0), default=-1)
        for at in range(len(completion) - _NUM_TELLING + 1):
            if completion[at : at + _NUM_TELLING] in shown:
                return at if safe < 0 else min(at, safe)
        return len(completion) if safe < 0 else safe


async def masked_in_slices(text: str, language: str) -> Masked:
    """Find the secrets of a long text, a slice at a time; the event loop goes on in between."""
    is_config = language in CONFIG_LANGUAGES
    spans: list[Span] = []
    first = 0
    while first < len(text):
        stop = line_stop(text, min(first + _SLICE_CHARS, len(text)))
        spans += [(first + start, first + end) for start, end in found(text[first:stop], is_config)]
        first = stop
        if first < len(text):
            await asyncio.sleep(0)
    return Masked(text, language, spans)


def without_placeholders(completion: str, masked: Masked) -> str:
    """Return the whole lines of a completion before one with a placeholder.

    Raises:
        HoldsSecret: that is nothing.
    """
    safe = masked.num_safe(completion)
    if safe == len(completion):
        return completion
    kept = completion[: completion.rfind("\n", 0, safe) + 1]
    if not kept.strip():
        raise HoldsSecret("the completion would repeat a secret of the text, which is hidden")
    return kept


def placeholder(secret: str) -> str:
    """Return what stands for a secret: letters for letters, digits for digits.

    Always the same for the same secret: a text that is opened again, here or by another process,
    gets the same prompt, so that caches serve it and completions can be repeated. It leaves this
    process for the user's own engine host only.
    """
    stream = hashlib.shake_256(secret.encode("utf-8", "surrogatepass")).digest(len(secret))
    return "".join(map(_substitute, secret, stream))


def _substitute(char: str, byte: int) -> str:
    if char.isdigit():
        return string.digits[byte % 10]
    if char.isalpha():
        letters = string.ascii_uppercase if char.isupper() else string.ascii_lowercase
        return letters[byte % 26]
    return _SYMBOLS[byte % len(_SYMBOLS)] if char in _SYMBOLS else char


def _hidden(text: str, base: int, spans: Sequence[Span]) -> str:
    """Return `text`, which begins at `base` of its document, with placeholders in `spans`."""
    if not spans:
        return text
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at : start - base], placeholder(text[start - base : end - base])]
        at = end - base
    return "".join([*parts, text[at:]])


def _difference(before: str, after: str, base: int) -> Iterator[Edit]:
    """Yield the one edit between texts of equal length, which begin at `base`."""
    if before == after:
        return
    differing = [
        at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    ]
    first, last = differing[0], differing[-1] + 1
    yield Edit(base + first, base + last, after[first:last])


def _num_below(starts: Starts, offset: int) -> int:
    return starts.part_of(offset - 1) + 1


def _line_start(text: Pieces, offset: int) -> int:
    """Return what `line_start` does; most lines are short."""
    num_chars = _LINE_CHARS
    while True:
        first = max(0, offset - num_chars)
        at = line_start(text.part(first, offset), offset - first)
        if at or not first:
            return first + at
        num_chars *= 8


def _line_stop(text: Pieces, offset: int) -> int:
    """Return what `line_stop` does; most lines are short."""
    num_chars = _LINE_CHARS
    while True:
        last = min(offset + num_chars, len(text))
        stop = offset + line_stop(text.part(offset, last), 0)
        if stop < last or last == len(text):
            return stop
        num_chars *= 8


def _keys_of(text: str) -> tuple[list[Span], list[int]]:
    """Return what is of private keys in a whole text, and the line starts where one turns."""
    spans: list[Span] = []
    turns: list[int] = []
    first, is_key = 0, False
    while True:
        if not is_key:
            cues = [at for cue in _KEY_CUES if (at := text.find(cue, first)) >= 0]
            if not cues:
                return spans, turns
            first = line_start(text, min(cues))
        stop = line_stop(text, first)
        here, goes_on = _keys_in(text[first:stop], is_key)
        spans += [(first + start, first + end) for start, end in here]
        if stop == len(text):
            return spans, turns
        first = stop + 1
        if goes_on != is_key:
            turns.append(first)
        is_key = goes_on


def _keys_in(line: str, is_key: bool) -> tuple[list[Span], bool]:
    """Return what is of private keys in a line, and whether one goes on behind it."""
    spans: list[Span] = []
    at = 0
    while True:
        if is_key:
            end = _END.search(line, at)
            stop = end.start() if end else len(line)
            if at == 0 and end is None and not _is_body(line):
                is_key = False
                continue
            if not _HEADER.match(line, at, stop):
                keys = _KEY_TEXT.finditer(line, at, stop)
                spans += [match.span() for match in keys if match[0][0] != "\\"]
            if end is None:
                return spans, True
            at, is_key = end.end(), False
        begin = _BEGIN.search(line, at) if any(cue in line for cue in _KEY_CUES) else None
        if begin is None:
            return spans, False
        at = begin.end()
        opened = _OPENED.match(line, at)
        is_key = opened is not None and (opened["key"] is not None or opened.end() == len(line))
        if not is_key:
            return spans, False


def _is_body(line: str) -> bool:
    return _BODY.fullmatch(line) is not None and _WORD.fullmatch(line) is None


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
