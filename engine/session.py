"""One document: its text, the layout around the cursor, and the prompt cache that follows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .generation.generate import generate
from .model.decoder import Check, Decoder
from .prompt.fim import FimTemplate
from .prompt.layout import Segment, lay_out
from .prompt.prompt_cache import Counts, PromptCache
from .tokens.tokenizer import Stretch, Tokenizer, common_prefix
from .wire.config import Completion, CompletionParams
from .wire.errors import BadPosition, ContextTooLong

Edit = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model as sessions use it.

    Attributes:
        name: how it was asked for.
        decoder: its weights.
        tokenizer: its tokenizer.
        template: its fill-in-the-middle format, None if it only continues text.
        window_tokens: tokens of a document that it sees.
        chars_per_token: characters a token stands for in code, for choosing the window.
        max_prompt_tokens: bound for text much denser in tokens than code.
        capacity: rows of a session's cache: the prompt and what may be generated.
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    template: FimTemplate | None
    window_tokens: int
    chars_per_token: float
    max_prompt_tokens: int
    capacity: int

    @property
    def languages(self) -> tuple[str, ...]:
        """What it was trained on, as LSP identifiers; empty if it does not say."""
        return self.template.languages if self.template else ()


class Session:
    """A document whose cache is patched instead of prefilled.

    Text changes at once and cheaply (`edit`); rows follow in `sync`. Every method that takes
    `check` may be left by what it raises and simply be called again.

    Attributes:
        text: the document.
        path: its file name, for messages.
        layout_name: "spm", "psm", or "prefix" for a model that only continues text.
    """

    def __init__(
        self,
        model: Model,
        text: str,
        *,
        path: str,
        policy: str,
        layout: str | None,
        chunk_tokens: int,
        make_room: Callable[[Session, int], None],
    ) -> None:
        """Open a document; nothing is computed yet.

        Args:
            model: shared with other sessions.
            text: the document.
            path: for messages.
            policy: how edits are served, one of `config.POLICIES`.
            layout: "spm" or "psm"; None takes the model's own.
            chunk_tokens: rows in one forward pass at most.
            make_room: called with the session and the rows it will hold before any are added.
        """
        self.model = model
        self.text = text
        self.path = path
        template = model.template
        self.layout_name = "prefix" if template is None else layout or template.layout
        self._heals_first = policy == "heal"
        self._make_room = make_room
        self._prompt = PromptCache(model.decoder, model.capacity, policy, chunk_tokens)
        self._stretches: dict[str, Stretch] = {}
        self._anchor: int | None = None  # where prefix and suffix meet; typed text may follow it
        self._cursor = 0
        self._is_dirty = True
        self._forced = ""

    # Text

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits to the text: (start, end, text), all in offsets before any of them.

        Raises:
            BadPosition: an edit lies outside the text or two overlap; nothing was changed.
        """
        ordered = sorted(edits, key=lambda edit: edit[:2])
        pieces, reached = [], 0
        for start, end, text in ordered:
            if not reached <= start <= end <= len(self.text):
                raise BadPosition(
                    f"edit [{start}, {end}) overlaps another or leaves the text of "
                    f"{len(self.text)} characters; send the whole text"
                )
            pieces += [self.text[reached:start], text]
            reached = end
        self.text = "".join([*pieces, self.text[reached:]])
        if self._anchor is not None:
            self._cursor = _shifted(self._cursor, ordered, after_insertion=True)
            anchor = _shifted(self._anchor, ordered, after_insertion=False)
            self._anchor = min(anchor, self._cursor)
        self._is_dirty = True

    def set_text(self, text: str) -> None:
        """Replace the whole text; what is still the same is found by comparing."""
        if text == self.text:
            return
        start = common_prefix(self.text, text)
        tail = common_prefix(self.text[start:][::-1], text[start:][::-1])
        self.edit([(start, len(self.text) - tail, text[start : len(text) - tail])])

    def set_cursor(self, offset: int) -> None:
        """Say where the next completion is expected: the layout's anchor.

        Raises:
            BadPosition: the offset lies outside the text.
        """
        if not 0 <= offset <= len(self.text):
            raise BadPosition(
                f"offset {offset} lies outside the text of {len(self.text)} characters"
            )
        if self._anchor is not None and offset == self._cursor:
            return  # typed on at the same place: a frozen layout keeps its tail
        self._anchor = self._cursor = offset
        self._is_dirty = True

    @property
    def anchor(self) -> int | None:
        """Where prefix and suffix of the layout meet; before the cursor in a frozen one."""
        return self._anchor

    @property
    def forced_text(self) -> str:
        """Text before the cursor that the model generates again (white space healed)."""
        return self._forced

    # Cache

    @property
    def num_bytes(self) -> int:
        """Memory that the cache holds."""
        return self._prompt.num_bytes

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, as of the last layout."""
        return self._prompt.num_tokens

    @property
    def num_stale(self) -> int:
        """Rows that `heal` would recompute."""
        return self._prompt.num_stale

    @property
    def num_rows_forwarded(self) -> int:
        """Rows computed so far, decoding included, healing excluded."""
        return self._prompt.num_rows_forwarded

    @property
    def num_rows_healed(self) -> int:
        """Rows recomputed by `heal`."""
        return self._prompt.num_rows_healed

    def drop_cache(self) -> None:
        """Give the cache's memory back; the next `sync` prefills."""
        self._prompt.drop()

    def sync(self, check: Check) -> None:
        """Patch the cache to the text and the anchor under the policy; without an anchor, nothing.

        Raises:
            ContextTooLong: not even the smallest window fits the cache.
            OutOfMemory: no memory for the cache.
            Cancelled, Interrupted: from `check`.
        """
        if self._anchor is None:
            return
        if self._is_dirty:
            self._lay_out()
            self._is_dirty = False
        self._make_room(self, self._prompt.num_tokens)
        self._prompt.patch(check)

    def heal(self, max_rows: int, check: Check) -> int:
        """Recompute stale rows in order; return the number done, 0 when all are fresh."""
        self.sync(check)
        return self._prompt.heal(max_rows, check)

    def take_counts(self) -> Counts:
        """Count the prompt's rows by provenance since the previous call, and start anew."""
        return self._prompt.take_counts()

    def score(self, token_ids: Sequence[int], check: Check) -> Tensor:
        """Return the (n, vocab_size) float32 logits that predict n tokens after the prompt."""
        return self._prompt.score(token_ids, check)

    def complete(
        self,
        offset: int,
        params: CompletionParams,
        check: Check,
        on_text: Callable[[str], None] | None = None,
        heal: bool = False,
    ) -> Completion:
        """Complete at a place.

        Args:
            offset: the cursor, in code points.
            params: budgets and sampling.
            check: called between layers and tokens.
            on_text: receives the text as it comes.
            heal: recompute what is stale first, whatever the policy.

        Raises:
            BadPosition, ContextTooLong, OutOfMemory, Cancelled, Interrupted.
        """
        started_at = time.perf_counter()
        prompt, model = self._prompt, self.model
        forwarded_before = prompt.num_rows_forwarded
        self.set_cursor(offset)
        self.sync(check)
        if self._heals_first or heal:
            prompt.heal_now(check)
        prompt.drop_generated()
        logits = prompt.logits(check)
        num_computed = prompt.num_rows_forwarded - forwarded_before
        generated = generate(
            logits,
            lambda token_id: prompt.decode(token_id, check),
            params,
            end_ids=model.template.end_ids if model.template else model.tokenizer.end_ids,
            token_bytes=model.tokenizer.token_bytes(),
            forced=self._forced,
            deadline=started_at + params.time_budget_ms / 1e3 if params.time_budget_ms else None,
            check=check,
            on_text=on_text,
        )
        return Completion(
            text=generated.text,
            token_ids=generated.token_ids,
            num_prompt_tokens=prompt.num_tokens,
            num_reused_tokens=max(0, prompt.num_tokens - num_computed),
            ttft_ms=(generated.first_token_at - started_at) * 1e3,
            total_ms=(time.perf_counter() - started_at) * 1e3,
            num_layers_run=model.decoder.config.num_layers,
            stop_reason=generated.stop_reason,
        )

    # Layout

    def _lay_out(self) -> None:
        """Tell the prompt cache what is wanted, and note the text to be generated again."""
        model = self.model
        chars_per_token = model.chars_per_token
        assert self._anchor is not None, "a layout needs an anchor"
        # A long tail takes room that the window counts on.
        longest_tail = model.window_tokens * chars_per_token / 8
        if self.layout_name != "psm" or self._cursor - self._anchor > longest_tail:
            self._anchor = self._cursor
        while True:
            layout = lay_out(
                self.text,
                self._anchor,
                self._cursor,
                model.template,
                self.layout_name,
                model.window_tokens,
                chars_per_token,
                model.tokenizer.start_id,
            )
            parts = [self._encode(segment) for segment in layout.segments]
            num_tokens = sum(map(len, parts))
            if num_tokens <= model.max_prompt_tokens:
                break
            if chars_per_token < 0.01:
                raise ContextTooLong(
                    f"a prompt of {num_tokens} tokens does not fit {model.max_prompt_tokens}; "
                    "raise cache_bytes or use a model with a longer context"
                )
            chars_per_token /= 2  # text as dense in tokens as emoji: see less of it
        self._prompt.want(parts)
        self._forced = self.text[layout.healed_from : self._cursor]

    def _encode(self, segment: Segment) -> NDArray[np.int64]:
        if segment.kind == "special":
            return np.array(segment.token_ids, dtype=np.int64)
        if segment.kind not in self._stretches:
            self._stretches[segment.kind] = Stretch(self.model.tokenizer)
        stretch = self._stretches[segment.kind]
        stretch.update(self.text[segment.start : segment.end])
        return stretch.token_ids


def _shifted(offset: int, edits: Sequence[Edit], *, after_insertion: bool) -> int:
    """Return where an offset lies after edits that are sorted and in offsets before any of them."""
    moved = offset
    for start, end, text in edits:
        if end < offset or (end == offset and (start < end or after_insertion)):
            moved += len(text) - (end - start)
        elif start < offset:
            moved += start - offset + (len(text) if after_insertion else 0)
    return moved
