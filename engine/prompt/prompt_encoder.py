"""One document's prompt in tokens: how much text fits the window, and whether it is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..tokens.tokenizer import Stretch, Tokenizer
from ..wire.errors import ContextTooLong
from .fim import FimTemplate
from .layout import STEPS, Layout, SegmentKey, choose_window, lay_out, narrow_window

Ints = NDArray[np.int64]
_NO_STARTS: Ints = np.empty(0, dtype=np.int64)

# The name is said in files of fewer lines than the first number, until they have as many as the
# second.
_HEADER_LINES = (20, 30)
# Few long lines (minified code) show what they are as well.
_LINE_CHARS = 80
_LONGEST_NAME = 100
_CONTROL = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
        self.says_header = bool(self._header) and _is_short(text, _HEADER_LINES[self.says_header])
        if self._layout != "psm" or cursor - anchor > self._max_chars / STEPS:
            anchor = cursor
        has_suffix = self._template is not None
        window = choose_window(text, anchor, cursor, self._max_chars, has_suffix=has_suffix)
        prompt = self._encode(text, anchor, cursor, window, self._wide)
        if prompt.num_tokens <= self._window_tokens:
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
        others = wide.num_tokens - len(before) - len(after)
        room = self._window_tokens - others
        while room >= 0:
            step = max(1, self._max_chars // STEPS)
            window = narrow_window(
                text, anchor, cursor, wide.layout.window, start + before, cursor + after, room, step
            )
            prompt = self._encode(text, anchor, cursor, window, self._narrow)
            excess = prompt.num_tokens - self._window_tokens
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
