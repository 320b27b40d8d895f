"""The window of a document's prompt: narrow at a place where nothing is computed, and growing.

What is nearest to the cursor is most of what a completion needs: over 480 held-out places a window
of 512 tokens gave 35.4 % of the first lines, one of 2,048 gave 37.9 %, for a quarter of the time.
Every width is an ordinary prompt; `PromptCache` turns what one has in common with the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model.pass_cost import PassCost
from .prompt_cache import PromptCache
from .prompt_encoder import Prompt, PromptEncoder

# Rows that are never too many: with fewer, too much of what the whole window gives is lost.
_LEAST_ROWS = 512
# Steps of growth that are tried, in eighths of a pass: the widest whose rows one pass computes.
_STEP_EIGHTHS = (8, 4, 2, 1)


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
        self._make_encoder = make_encoder
        self._window_tokens = window_tokens
        self._step_tokens = step_tokens
        self._narrow: tuple[int, PromptEncoder] | None = None  # its width, and what encodes it

    @property
    def width(self) -> int | None:
        """Most tokens of the window's prompts; None while it is whole."""
        return None if self._narrow is None else self._narrow[0]

    def fit(
        self, text: str, anchor: int, cursor: int, cache: PromptCache, limit: ColdLimit
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
        self, text: str, anchor: int, cursor: int, cache: PromptCache
    ) -> tuple[Prompt, Callable[[], None]]:
        """Return a wider prompt, and what to call when its rows are there.

        Until that is called the window is as wide as it was. Arguments as for `fit`.
        """
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

    def _widen(self, narrow: tuple[int, PromptEncoder] | None) -> None:
        self._narrow = narrow

    def _encode(self, encoder: PromptEncoder, text: str, anchor: int, cursor: int) -> Prompt:
        encoder.says_header = self.whole.says_header
        return encoder.encode(text, anchor, cursor)
