"""Fill-in-the-middle samples out of documents: windows, middles, layouts, classes of the targets.

A document is cut into windows from its top to its end, and each becomes one sample.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from keyturn.engine.prompt.layout import Segment

from .cross_file import Neighbours
from .documents import OLD, Document, language_of
from .edits import Hunk, Window, before_edit, hunks_between
from .layouts import (
    EFIM,
    END,
    FILE_SEP,
    FILENAME,
    FIRST,
    LAST,
    LINE_START,
    MAX_TOKENS,
    MIDDLE,
    NONE,
    OTHER,
    PLAIN,
    PSM,
    SPM,
    WANTED,
    arrange,
    by_segment,
    segments,
)
from .small_programs import small_programs
from .spans import KINDS, LONG, SHORT, SMALL, Mix, pick_span
from .syntax import Source
from .turned import Edit, old_rows

MAX_MIDDLE = 900  # tokens
MAX_CHUNK = 400  # tokens of another file
LONG_CHARS = 4000  # a window from this size on is a long one
NUM_MARKS = 4  # PRE, SUF, MID, END
LAYOUT_SHARES = {PSM: 0.3, SPM: 0.54, EFIM: 0.16}


class Sample(NamedTuple):
    """One sample.

    Attributes:
        tokens: token ids.
        classes: of each token, see `layouts`.
        kind: of its middle, an index of `spans.KINDS`; 0 for plain text.
        layout: PSM, SPM, EFIM or PLAIN.
        edit: what the prompt was before an edit, in some samples.
    """

    tokens: list[int]
    classes: list[int]
    kind: int
    layout: int
    edit: Edit | None = None


@dataclass
class Shares:
    """How often samples have what not all of them have.

    Attributes:
        edited: of fill-in-the-middle samples, those whose prompt is computed before an edit too.
        wanted: those whose prompt says whether a line or a block is wanted.
    """

    edited: float = 0.0
    wanted: float = 0.0


class Builder:
    """Make samples of documents; holds what cross-file context needs to know of all of them."""

    def __init__(
        self,
        documents: list[Document],
        tokenizer: Path | str | None = None,
        shares: Shares | None = None,
    ) -> None:
        """Index the documents; without a tokenizer none is made before `open_tokenizer`.

        Earlier releases of files, of packages "old:NAME", are only looked up for their changes.
        """
        old = [d for d in documents if d.package.startswith(OLD)]
        self._old = {(d.package.removeprefix(OLD), d.path): d.text for d in old}
        documents = [d for d in documents if not d.package.startswith(OLD)]
        self.documents = documents
        self.shares = shares or Shares()
        self._neighbours = Neighbours(documents)
        self._tokenizer: Tokenizer | None = None
        self._opens_line: list[bool] = []
        self._closes_line: list[bool] = []
        self._hunks: list[Hunk] = []  # of the document at hand
        if tokenizer is not None:
            self.open_tokenizer(tokenizer)

    def open_tokenizer(self, path: Path | str) -> None:
        """Open a tokenizer.json, once in each process: it does not outlive a fork."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer = Tokenizer.from_file(str(path))
            words = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
            self._opens_line = [word.startswith("Ċ") for word in words]  # a newline's byte
            self._closes_line = [word.endswith("Ċ") for word in words]

    def samples(
        self, rng: random.Random, number: int, num_small: int = 1, natural: bool = False
    ) -> Iterator[Sample | None]:
        """Yield the samples of one pass over a document, None for windows that gave none.

        Args:
            rng: decides; the same state gives the same samples.
            number: of the document.
            num_small: samples of each small program in it.
            natural: no plain text and no small programs, as for held-out samples.
        """
        package, path, text = self.documents[number]
        source = Source(text, language_of(path))
        old = self._old.get((package, path))
        self._hunks = hunks_between(old, text) if old and self.shares.edited else []
        is_set = package.startswith(("algo:", "npm:@datastructures"))
        if language_of(path) == "py" and not natural:
            yield from self._small(rng, path, text, num_small)
        a = 0
        while a < len(text):
            b, is_long = _window(rng, source, a, is_set)
            mix = SMALL if is_set else LONG if is_long else SHORT
            if b - a > 40 and (natural or rng.random() > 0.03):
                context = not is_long and not is_set and rng.random() < 0.10
                header = context or rng.random() < (0.15 if is_set else 0.4)
                yield self.fim(
                    rng, source, a, b, mix, number if context else None, path if header else ""
                )
            elif not natural:
                yield self.plain(text[a:b], b == len(text))
            a = b

    def fim(
        self,
        rng: random.Random,
        source: Source,
        a: int,
        b: int,
        mix: Mix,
        number: int | None = None,
        path: str = "",
    ) -> Sample | None:
        """Return one sample of the window [a, b), or None if nothing in it makes a middle.

        Args:
            rng: decides.
            source: the document.
            a: first character of the window.
            b: character after it.
            mix: kinds of middles, see `spans`.
            number: of the document, to give it cross-file context.
            path: for a header.
        """
        span = pick_span(rng, source, a, b, mix)
        if span is None:
            return None
        kind, start, end = span
        text = source.text
        if kind not in ("args", "expr", "random") and rng.random() < 0.1:
            b = end  # nothing after the cursor
        layout = rng.choices(list(LAYOUT_SHARES), list(LAYOUT_SHARES.values()))[0]
        split = start  # where the frozen prefix ends and the typed text begins
        if layout == EFIM:
            split = max(a, start - max(1, int(rng.lognormvariate(3.2, 1.2))))
        prefix, typed, middle, suffix = self._encode(
            text[a:split], text[split:start], text[start:end], text[end:b]
        )
        if not middle or len(middle) > MAX_MIDDLE:
            return None
        head = self._head(rng, number, path, text[a:b], text[start:end])
        wanted = [WANTED["block" if "\n" in text[start:end] else "line"]]
        wanted = wanted if self.shares.wanted and rng.random() < self.shares.wanted else []
        size = len(head) + len(prefix) + len(typed) + len(middle) + len(suffix) + NUM_MARKS
        excess = size + len(wanted) - MAX_TOKENS
        prefix, suffix = _shortened(prefix, suffix, excess)
        order = segments(text[a:split], text[split:start], text[end:b], layout)
        parts = {"prefix": prefix, "tail": typed, "suffix": suffix}
        tokens, classes = arrange(order, parts)
        of_head = [NONE if number is None else OTHER] * len(head)
        prompt = [*head, *tokens, *wanted]
        tokens = [*prompt, *middle, END]
        classes = [
            *(*of_head, *classes, *[NONE] * len(wanted)),
            *(*self._middle_classes(middle), LAST),
        ]
        if len(tokens) > MAX_TOKENS:
            return None
        edit = None
        if self.shares.edited and excess <= 0 and rng.random() < self.shares.edited:
            window = Window(a, start, end, b)
            edit = self._edit(rng, source, window, order, parts, head, wanted, len(middle) + 1)
        return Sample(tokens, classes, KINDS.index(kind), layout, edit)

    def _edit(
        self,
        rng: random.Random,
        source: Source,
        window: Window,
        order: Sequence[Segment],
        parts: dict[str, list[int]],
        head: list[int],
        wanted: list[int],
        num_middle: int,
    ) -> Edit | None:
        """Return what the prompt was before an edit of the window, None if there is none to make.

        What was typed since the freeze stays as it is: it lies at the cursor.
        """
        typed = next((s.text for s in order if s.kind == "tail"), "")
        split = window._replace(start=window.start - len(typed))
        found = before_edit(rng, source, split, self._hunks)
        if found is None:
            return None
        prefix, suffix = self._encode(*found)
        old = by_segment(order, {**parts, "prefix": prefix, "suffix": suffix}, head, wanted)
        new = by_segment(order, parts, head, wanted)
        tokens = [token for part in old.values() for token in part]
        if len(tokens) > MAX_TOKENS:
            return None
        sources = old_rows(old, new)
        if sources.max() < 0:
            return None
        rows = np.concatenate([sources, np.full(num_middle, -1)]).astype(np.int16)
        return Edit(np.array(tokens, np.uint16), rows, len(sources) - 1)

    def plain(self, text: str, whole: bool) -> Sample:
        """Return a sample of plain text; `whole` if the file ends with it."""
        tokens = self._encode(text)[0][: MAX_TOKENS - 1]
        classes = [*[OTHER] * len(tokens), OTHER if whole else NONE]
        return Sample([*tokens, END], classes, 0, PLAIN)

    def _small(
        self, rng: random.Random, path: str, text: str, times: int
    ) -> Iterator[Sample | None]:
        for program in small_programs(text):
            source = Source(program, "py")
            for _ in range(times):
                header = path if rng.random() < 0.1 else ""
                yield self.fim(rng, source, 0, len(program), SMALL, path=header)

    def _head(
        self, rng: random.Random, number: int | None, path: str, window: str, middle: str
    ) -> list[int]:
        """Return the tokens of cross-file context and header."""
        tokens: list[int] = []
        if number is not None:
            for other, chunk in self._neighbours.chunks(rng, number, window, middle):
                head, body = self._encode(other + "\n", chunk)
                tokens += [FILE_SEP, FILENAME, *head, *body[:MAX_CHUNK]]
        if path:
            tokens += [FILE_SEP, FILENAME, *self._encode(path + "\n")[0]]
        return tokens

    def _middle_classes(self, middle: list[int]) -> list[int]:
        classes = [MIDDLE] * len(middle)
        for i in range(1, len(middle)):
            if self._opens_line[middle[i]] or self._closes_line[middle[i - 1]]:
                classes[i] = LINE_START
        classes[0] = FIRST
        return classes

    def _encode(self, *texts: str) -> list[list[int]]:
        assert self._tokenizer is not None, "open_tokenizer comes first"
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]


def _shortened(prefix: list[int], suffix: list[int], excess: int) -> tuple[list[int], list[int]]:
    """Cut that many tokens: first the far prefix, two thirds at most, then the far suffix."""
    if excess <= 0:
        return prefix, suffix
    cut = min(excess, len(prefix) * 2 // 3)
    return prefix[cut:], suffix[: max(0, len(suffix) - (excess - cut))]


def _window(rng: random.Random, source: Source, a: int, is_set: bool) -> tuple[int, bool]:
    """Return where the window from `a` ends, mostly at the start of a line; whether it is long."""
    where = rng.random()
    if where < 0.60:
        size = rng.randrange(200, 700)
    elif where < 0.93:
        size = rng.randrange(700, 1800)
    else:
        size = rng.randrange(LONG_CHARS, 7200)
    is_long, num_chars = size >= LONG_CHARS, len(source.text)
    if is_set and num_chars < LONG_CHARS:  # a small program stays whole
        size = num_chars
    b = a + size
    if b > num_chars - 200:
        return num_chars, is_long
    starts = source.starts
    return starts[min(bisect.bisect_left(starts, b), len(starts) - 1)], is_long
