"""One document's prompt in tokens: how much text fits the window, and how wide that is.

Where nothing is computed it is narrow, and grows. What is nearest to the cursor is most of what a
completion needs: over 480 held-out places a window of 512 tokens gave 35.4 % of the first lines,
one of 2,048 gave 37.9 %, for a quarter of the time. Every width is an ordinary prompt;
`PatchedCache` turns what one has in common with the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model.pass_cost import PassCost
from ..tokens.tokenizer import Stretch, Tokenizer
from ..wire.errors import ContextTooLong
from .fim import FimTemplate
from .layout import (
    STEPS,
    WANTED_KEY,
    Layout,
    SegmentKey,
    choose_window,
    lay_out,
    narrow_window,
)
from .patched_cache import PatchedCache

Ints = NDArray[np.int64]
_NO_STARTS: Ints = np.empty(0, dtype=np.int64)

# The name is said in files of fewer lines than the first number, until they have as many as the
# second.
_HEADER_LINES = (20, 30)
# Few long lines (minified code) show what they are as well.
_LINE_CHARS = 80
_LONGEST_NAME = 100
_CONTROL = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Rows that are never too many: with fewer, too much of what the whole window gives is lost.
_LEAST_ROWS = 512
# Rows of a pass that is to fit between two keys, however short the time is.
_LEAST_PASS = 16
# Steps of growth that are tried, in eighths of a pass: the widest whose rows one pass computes.
_STEP_EIGHTHS = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in tokens.

    Attributes:
        layout: what it shows.
        anchor: where prefix and suffix meet in it.
        tokens: token ids of each segment, in the model's order.
    """

    layout: Layout
    anchor: int
    tokens: dict[SegmentKey, Ints]

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(map(len, self.tokens.values()))


class PromptEncoder:
    """Encodes one document's prompts, each from the one before it.

    The window is counted in tokens of the text itself: what `choose_window` shows of code is
    encoded, and where those are too many tokens, less is shown.

    Attributes:
        says_header: whether the last prompt began with the file's name. Where the next one has as
            many lines as decide it, that depends on this.
        others: path and text of other files, which come first; a narrow window shows none.
        wanted: what prompts say is wanted from now on, see `wanted_of`.
    """

    def __init__(
        self,
        template: FimTemplate | None,
        tokenizer: Tokenizer,
        layout: str,
        window_tokens: int,
        chars_per_token: float,
        path: str,
    ) -> None:
        """Start without a text.

        Args:
            template: the model's fill-in-the-middle format, None if it only continues text.
            tokenizer: the model's.
            layout: "spm", "psm" or "prefix".
            window_tokens: most tokens of a prompt.
            chars_per_token: characters of code a token stands for.
            path: of the document, for the header.
        """
        self.says_header = False
        self.others: tuple[tuple[str, str], ...] = ()
        self.wanted = ""
        self._template = template
        self._tokenizer = tokenizer
        self._layout = layout
        self._window_tokens = window_tokens
        self._max_chars = int(window_tokens * chars_per_token)
        # A path "inside" is said only together with other files.
        names = template is not None and template.header_ids and template.files != "inside"
        self._header = _header(path) if names else ""
        # Of the window as code would fill it, and of what is shown if that is less.
        self._wide: dict[SegmentKey, Stretch] = {}
        self._narrow: dict[SegmentKey, Stretch] = {}

    def encode(self, text: str, anchor: int, cursor: int) -> Prompt:
        r"""Lay out and encode the prompt for a place.

        Args:
            text: the document, with "\n" for every line end.
            anchor: as for `lay_out`. A tail that takes more room than the window counts on becomes
                a part of the prefix, and so it does in a layout that has no tail.
            cursor: as for `lay_out`.

        Returns:
            A prompt of at most `window_tokens` tokens.

        Raises:
            ContextTooLong: not even a prompt without text fits.
        """
        # Where other files come first, a model was trained to see which one this is.
        self.says_header = bool(self._header) and (
            bool(self.others) or _is_short(text, _HEADER_LINES[self.says_header])
        )
        if self._layout != "psm" or cursor - anchor > self._max_chars / STEPS:
            anchor = cursor
        has_suffix = self._template is not None
        window = choose_window(text, anchor, cursor, self._max_chars, has_suffix=has_suffix)
        prompt = self._encode(text, anchor, cursor, window, self._wide)
        if self._size(prompt) <= self._window_tokens:
            return prompt
        if anchor < cursor and 4 * len(prompt.tokens[("tail",)]) > self._window_tokens:
            return self.encode(text, cursor, cursor)
        return self._narrowed(prompt, text, cursor)

    def _narrowed(self, wide: Prompt, text: str, cursor: int) -> Prompt:
        """Return the prompt of a window that is narrower than one which does not fit."""
        anchor, (start, _) = wide.anchor, wide.layout.window
        before, after = (
            self._wide[key].starts if key in self._wide else _NO_STARTS
            for key in (("prefix",), ("suffix",))
        )
        others = self._size(wide) - len(before) - len(after)
        room = self._window_tokens - others
        while room >= 0:
            step = max(1, self._max_chars // STEPS)
            window = narrow_window(
                text, anchor, cursor, wide.layout.window, start + before, cursor + after, room, step
            )
            prompt = self._encode(text, anchor, cursor, window, self._narrow)
            excess = self._size(prompt) - self._window_tokens
            if excess <= 0:
                return prompt
            # A text that is cut elsewhere may have a few tokens more.
            room = max(room - excess, 0) if room else -1
        if self.says_header:
            self.says_header = False
            return self._narrowed(
                self._encode(text, anchor, cursor, wide.layout.window, self._wide), text, cursor
            )
        raise ContextTooLong(
            f"the {others} tokens around a prompt's text do not fit a window of "
            f"{self._window_tokens}; raise window_tokens or cache_bytes"
        )

    def _size(self, prompt: Prompt) -> int:
        """Return a prompt's tokens, with a mark of what is wanted where it might have one.

        So it shows the same text with and without: all rows but the last stay.
        """
        has_room = self._template is not None and bool(self._template.wanted_ids)
        return prompt.num_tokens + (has_room and WANTED_KEY not in prompt.tokens)

    def _encode(
        self,
        text: str,
        anchor: int,
        cursor: int,
        window: tuple[int, int],
        stretches: dict[SegmentKey, Stretch],
    ) -> Prompt:
        layout = lay_out(
            text,
            anchor,
            cursor,
            self._template,
            self._layout,
            window,
            self._tokenizer.start_id,
            self._header if self.says_header else "",
            self.others,
            wanted=self.wanted,
        )
        tokens: dict[SegmentKey, Ints] = {}
        for segment in layout.segments:
            tokens[segment.key] = np.array(segment.token_ids, dtype=np.int64)
            if segment.kind == "marks":
                continue
            if segment.key not in stretches:
                stretches[segment.key] = Stretch(self._tokenizer)
            stretch = stretches[segment.key]
            stretch.update(segment.text)
            if segment.token_ids:
                tokens[segment.key] = np.concatenate([tokens[segment.key], stretch.token_ids])
            else:
                tokens[segment.key] = stretch.token_ids
        return Prompt(layout, anchor, tokens)


def _is_short(text: str, num_lines: int) -> bool:
    """Whether a text has fewer lines; at the cost of those, not of the text."""
    if len(text) > num_lines * _LINE_CHARS:
        return False
    return text.count("\n") + 1 < num_lines


def _header(path: str) -> str:
    """Return what a header says: the file's name, without control characters and not too long.

    Not its folders, of which an editor and a command line see different ones.
    """
    return _CONTROL.sub("", path.replace("\\", "/").rsplit("/", 1)[-1])[-_LONGEST_NAME:]


@dataclass(frozen=True, slots=True)
class ColdLimit:
    """How many rows may be missing before a completion without the window being narrowed.

    Attributes:
        max_ms: what it is expected to take to compute them; 0: no limit, the window is whole.
        max_rows: just so many at most, whatever they take; None: as `max_ms` says.
    """

    max_ms: float = 0.0
    max_rows: int | None = None

    def rows(self, most: int, cost: PassCost) -> int:
        """Return the number, `most` at most."""
        if self.max_rows is not None:
            return min(self.max_rows, most)
        if not self.max_ms:
            return most
        if cost.ms(1) is None:
            return min(_LEAST_ROWS, most)
        return min(max(_LEAST_ROWS, cost.rows_within(self.max_ms, most)), most)


# What a replay does, so that it does not depend on the machine.
WHOLE = ColdLimit()


class GrowingWindow:
    """Chooses the width of one document's prompts.

    Attributes:
        whole: encodes prompts of the whole window.
        wanted_others: path and text of other files that it is to show; `next` adds them.
        pass_tokens: rows that one pass of a step computes: fewer after an interrupted one.
    """

    def __init__(
        self,
        make_encoder: Callable[[int], PromptEncoder],
        window_tokens: int,
        step_tokens: int,
    ) -> None:
        """Start with the whole window.

        Args:
            make_encoder: returns an encoder of prompts of so many tokens at most.
            window_tokens: of the whole window.
            step_tokens: rows that one step of growth computes.
        """
        self.whole = make_encoder(window_tokens)
        self.wanted_others: tuple[tuple[str, str], ...] = ()
        self._make_encoder = make_encoder
        self._window_tokens = window_tokens
        self._step_tokens = self.pass_tokens = step_tokens
        self._narrow: tuple[int, PromptEncoder] | None = None  # its width, and what encodes it

    @property
    def width(self) -> int | None:
        """Most tokens of the window's prompts; None while it is whole."""
        return None if self._narrow is None else self._narrow[0]

    def fit(
        self, text: str, anchor: int, cursor: int, cache: PatchedCache, limit: ColdLimit
    ) -> Prompt:
        """Return the prompt to complete from now: the whole one, if not too many rows are missing.

        Else one as wide as before, if that is possible, else as wide as the limit allows.

        Args:
            text: as for `PromptEncoder.encode`.
            anchor: likewise.
            cursor: likewise.
            cache: whose rows there are.
            limit: how many may be missing.

        Raises:
            ContextTooLong: not even a prompt without text fits.
        """
        prompt = self.whole.encode(text, anchor, cursor)
        most = limit.rows(self._window_tokens, cache.decoder.cost)
        if most >= prompt.num_tokens or cache.num_missing(prompt.tokens) <= most:
            self._narrow = None
            return prompt
        if self._narrow is not None:
            prompt = self._encode(self._narrow[1], text, anchor, cursor)
            if cache.num_missing(prompt.tokens) <= most:
                return prompt
        self._narrow = most, self._make_encoder(most)
        return self._encode(self._narrow[1], text, anchor, cursor)

    def fit_whole(self, text: str, anchor: int, cursor: int) -> Prompt:
        """Return the prompt of the whole window, whatever it takes."""
        self._narrow = None
        return self.whole.encode(text, anchor, cursor)

    def next(
        self, text: str, anchor: int, cursor: int, cache: PatchedCache
    ) -> tuple[Prompt, Callable[[], None]]:
        """Return a wider prompt, and what to call when its rows are there.

        Where the window is whole, one with one more of the other files that are wanted, in the
        place of those that are not. Until that is called the window is as it was. Arguments as for
        `fit`.
        """
        if self._narrow is None and self.wanted_others != self.whole.others:
            return self._with_another(text, anchor, cursor)
        whole = self.whole.encode(text, anchor, cursor)
        if self._narrow is None or cache.num_missing(whole.tokens) <= self._step_tokens:
            return whole, lambda: self._widen(None)
        width, encoder = self._narrow
        shown = self._encode(encoder, text, anchor, cursor).layout.window
        found: tuple[Prompt, tuple[int, PromptEncoder] | None] | None = None
        for eighths in _STEP_EIGHTHS:
            wider = width + max(1, self._step_tokens * eighths // 8)
            if wider >= self._window_tokens:
                found = found or (whole, None)
                continue
            encoder = self._make_encoder(wider)
            prompt = self._encode(encoder, text, anchor, cursor)
            start, end = prompt.layout.window
            found = found or (prompt, (wider, encoder))
            # Edges lie on a grid: a little more room may show a little less on one side.
            if start > shown[0] or end < shown[1]:
                continue
            if cache.num_missing(prompt.tokens) <= self._step_tokens:
                found = prompt, (wider, encoder)
                break
        assert found is not None, "there are steps to be tried"
        prompt, narrow = found
        return prompt, lambda: self._widen(narrow)

    def interrupted(self) -> None:
        """Note that a pass was not completed: the next ones are half as long."""
        self.pass_tokens = max(min(_LEAST_PASS, self._step_tokens), self.pass_tokens // 2)

    def _with_another(
        self, text: str, anchor: int, cursor: int
    ) -> tuple[Prompt, Callable[[], None]]:
        encoder, wanted = self.whole, self.wanted_others
        before = encoder.others
        same = [one == other for one, other in zip(before, wanted, strict=False)]
        num_kept = (*same, False).index(False)
        more = wanted[: num_kept + 1]
        encoder.others = more
        try:
            prompt = encoder.encode(text, anchor, cursor)
        finally:
            encoder.others = before

        def shown() -> None:
            encoder.others = more
            self._lengthen()

        return prompt, shown

    def _widen(self, narrow: tuple[int, PromptEncoder] | None) -> None:
        self._narrow = narrow
        self._lengthen()

    def _lengthen(self) -> None:
        self.pass_tokens = min(2 * self.pass_tokens, self._step_tokens)

    def _encode(self, encoder: PromptEncoder, text: str, anchor: int, cursor: int) -> Prompt:
        encoder.says_header, encoder.wanted = self.whole.says_header, self.whole.wanted
        return encoder.encode(text, anchor, cursor)
