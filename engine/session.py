"""One document: its text, the layout around the cursor, and the cache that follows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import Completion, CompletionParams
from .edit_plan import match_rows
from .errors import BadPosition, ContextTooLong
from .fim import FimTemplate
from .generate import generate
from .kv_cache import KVCache, Slots
from .layout import lay_out
from .model import Check, Decoder
from .tokenizer import Stretch, Tokenizer

Edit = tuple[int, int, str]

# Where a row's keys and values come from since the last completion (record "provenance").
KEPT, TURNED, REPAIRED, RECOMPUTED = range(4)

# Added to the positions of rows that a pass must not see: causality hides them.
_OUT_OF_SIGHT = 1 << 40


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
        capacity: rows of a session's cache: the window, what may be generated, and slack.
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    template: FimTemplate | None
    window_tokens: int
    chars_per_token: float
    capacity: int
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The layout's rows by where they came from since the previous completion."""

    num_wanted: int
    num_kept: int
    num_turned: int
    num_repaired: int
    num_recomputed: int


class Session:
    """A document whose cache is patched instead of prefilled.

    Text changes at once and cheaply (`edit`); the cache follows in `sync`, the only place that
    computes rows for it. Every method that takes `check` may be left by what it raises and simply
    be called again: rows already computed stay.

    Attributes:
        text: the document.
        path: its file name, for messages.
        layout_name: "spm", "psm" or "prefix" (left to right).
        num_rows_forwarded: rows computed so far, decoding included, healing excluded.
        num_rows_healed: rows recomputed by `heal`.
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
        self.policy = policy
        template = model.template
        self.layout_name = "prefix" if template is None else layout or template.layout
        self.num_rows_forwarded = 0
        self.num_rows_healed = 0
        self._chunk_tokens = chunk_tokens
        self._make_room = make_room
        self._anchor: int | None = None
        self._cursor = 0
        self._is_dirty = True
        self._stretches: dict[str, Stretch] = {}
        self._wanted_ids = self._wanted_sides = np.empty(0, dtype=np.int64)
        self._forced = ""
        self._cache: KVCache | None = None
        self._logits: Tensor | None = None

    # Text

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits to the text: (start, end, text), all in offsets before any of them.

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
        pieces, reached = [], 0
        for start, end, text in ordered:
            pieces += [self.text[reached:start], text]
            reached = end
        self.text = "".join([*pieces, self.text[reached:]])
        if self._anchor is not None:
            self._cursor = _shifted(self._cursor, ordered, after_insertion=True)
            self._anchor = min(_shifted(self._anchor, ordered, after_insertion=False), self._cursor)
        self._is_dirty = True

    def set_text(self, text: str) -> None:
        """Replace the whole text; what is still the same is found by comparing."""
        if text == self.text:
            return
        start = _common_prefix(self.text, text)
        end = len(self.text) - _common_prefix(self.text[start:][::-1], text[start:][::-1])
        self.edit([(start, end, text[start : len(text) - len(self.text) + end])])

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

    # Cache

    @property
    def num_bytes(self) -> int:
        """Memory that the cache holds."""
        return 0 if self._cache is None else self._cache.num_bytes

    @property
    def num_stale(self) -> int:
        """Rows of the layout that `heal` would recompute."""
        if self._cache is None:
            return 0
        return max(0, min(len(self._wanted_ids), self._cache.num_rows) - self._cache.num_fresh)

    def drop_cache(self) -> None:
        """Give the cache's memory back; the next `sync` prefills."""
        self._cache = self._logits = None

    def sync(self, check: Check) -> None:
        """Patch the cache to the text and the anchor under the policy; without an anchor, nothing.

        Raises:
            ContextTooLong: not even the smallest window fits the cache.
            OutOfMemory: no memory for the cache.
            Cancelled, Interrupted: from `check`.
        """
        if self._anchor is None:
            return
        changed = self._is_dirty
        if changed:
            self._lay_out()
        needed = self._cache_for_window()
        if changed and self.policy == "full":
            needed.clear()
            self._logits = None
        self._is_dirty = False
        missing = self._place(needed)
        for start in range(0, len(missing), self._chunk_tokens):
            at = missing[start : start + self._chunk_tokens]
            self._logits = self._extend(self._wanted_ids[at], at, self._wanted_sides[at], check)
        if len(missing) and missing[-1] != len(self._wanted_ids) - 1:
            self._logits = None

    def heal(self, max_rows: int, check: Check) -> int:
        """Recompute stale rows in order, from the lowest stale position.

        After the last of them the cache equals a full prefill.

        Returns:
            The number of rows done; 0 when all are fresh.
        """
        self.sync(check)
        before = self.num_rows_healed
        while self.num_stale and self.num_rows_healed - before < max_rows:
            most = max_rows - (self.num_rows_healed - before)
            slots = self._recompute_lowest_stale(most, check)
            self.num_rows_healed += len(slots)
        return self.num_rows_healed - before

    def complete(
        self,
        offset: int,
        params: CompletionParams,
        check: Check,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Complete at a place.

        Args:
            offset: the cursor, in code points.
            params: budgets and sampling.
            check: called between layers and tokens.
            on_text: receives the text as it comes.

        Raises:
            BadPosition, ContextTooLong, OutOfMemory, Cancelled, Interrupted.
        """
        started_at = time.perf_counter()
        forwarded_before = self.num_rows_forwarded
        self.set_cursor(offset)
        self.sync(check)
        if self.policy == "heal":
            while self.num_stale:
                slots = self._recompute_lowest_stale(self.num_stale, check)
                self._count_forwarded(slots)
        logits = self._logits_after_prompt(check)
        num_prompt = len(self._wanted_ids)
        num_computed = self.num_rows_forwarded - forwarded_before
        model = self.model
        template = model.template
        generated = generate(
            logits,
            lambda token_id: self._decode(token_id, check),
            params,
            end_ids=model.tokenizer.end_ids if template is None else template.end_ids,
            token_bytes=model.tokenizer.token_bytes(),
            forced=self._forced,
            deadline=started_at + params.time_budget_ms / 1e3 if params.time_budget_ms else None,
            check=check,
            on_text=on_text,
        )
        return Completion(
            text=generated.text,
            token_ids=generated.token_ids,
            num_prompt_tokens=num_prompt,
            num_reused_tokens=max(0, num_prompt - num_computed),
            ttft_ms=(generated.first_token_at - started_at) * 1e3,
            total_ms=(time.perf_counter() - started_at) * 1e3,
            num_layers_run=model.decoder.config.num_layers,
            stop_reason=generated.stop_reason,
        )

    # Measuring

    def take_counts(self) -> Counts:
        """Count the layout's rows by provenance since the previous call, and start anew."""
        cache = self._cache_for_window()
        provenance = cache.record("provenance")
        of_layout = provenance[cache.positions < len(self._wanted_ids)]
        counts = np.bincount(of_layout, minlength=4).tolist()
        provenance[:] = KEPT
        return Counts(len(of_layout), *counts)

    def score(self, token_ids: Sequence[int], check: Check) -> Tensor:
        """Return what the model predicts at each of these tokens, were they to come next.

        Args:
            token_ids: n tokens after the layout, at least one.
            check: called between layers.

        Returns:
            (n, vocab_size) float32 logits; row i predicts `token_ids[i]`. The rows added for it
            are dropped again.
        """
        first = self._logits_after_prompt(check)[None]
        if len(token_ids) == 1:
            return first
        cache, decoder = self._cache_for_window(), self.model.decoder
        num_prompt, num_fresh = len(self._wanted_ids), cache.num_fresh
        generated = np.flatnonzero(cache.positions >= num_prompt)
        cache.positions[generated] += _OUT_OF_SIGHT
        fed = np.array(token_ids[:-1], dtype=np.int64)
        slots = cache.append(fed, num_prompt + np.arange(len(fed)))
        try:
            hidden = decoder.forward(cache, slots, check)
        finally:
            cache.remove(slots)
            cache.positions[generated] -= _OUT_OF_SIGHT
            cache.num_fresh = num_fresh
        return torch.cat([first, decoder.logits(hidden)])

    # Layout

    def _lay_out(self) -> None:
        """Set the wanted tokens, their sides, and the text to be generated again."""
        model = self.model
        assert self._anchor is not None, "a layout needs an anchor"
        if self.layout_name != "psm":
            self._anchor = self._cursor  # only PSM keeps what was typed apart from the prefix
        chars_per_token = model.chars_per_token
        if self._cursor - self._anchor > model.window_tokens * chars_per_token / 8:
            self._anchor = self._cursor  # a tail this long takes room that the window counts on
        tokenizer = model.tokenizer
        start_id = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        while True:
            layout = lay_out(
                self.text,
                self._anchor,
                self._cursor,
                model.template,
                self.layout_name,
                model.window_tokens,
                chars_per_token,
                start_id,
            )
            parts = []
            for segment in layout.segments:
                if segment.kind == "special":
                    parts.append(np.array(segment.token_ids, dtype=np.int64))
                else:
                    stretch = self._stretches.setdefault(segment.kind, Stretch(tokenizer))
                    stretch.update(self.text[segment.start : segment.end])
                    parts.append(stretch.token_ids)
            sizes = [len(part) for part in parts]
            if sum(sizes) <= model.max_prompt_tokens:
                break
            if chars_per_token < 0.01:
                raise ContextTooLong(
                    f"a prompt of {sum(sizes)} tokens does not fit {model.max_prompt_tokens}; "
                    "raise cache_bytes or use a model with a longer context"
                )
            chars_per_token /= 2  # text as dense as emoji: see less of it
        self._wanted_ids = np.concatenate(parts)
        self._wanted_sides = np.repeat(np.arange(len(parts)), sizes)
        self._forced = self.text[layout.healed_from : self._cursor]

    def _cache_for_window(self) -> KVCache:
        if self._cache is None:
            decoder = self.model.decoder
            self._cache = KVCache(
                decoder.config, self.model.capacity, decoder.dtype, decoder.device
            )
            self._cache.add_record("sides", np.int64, 0)
            self._cache.add_record("provenance", np.int8, RECOMPUTED)
        return self._cache

    # Rows

    def _place(self, cache: KVCache) -> NDArray[np.int64]:
        """Keep, turn and drop rows; return the positions whose rows are missing."""
        order = cache.by_position()
        resident_ids, resident_sides = cache.token_ids[order], cache.record("sides")[order]
        if self.policy in ("full", "prefix"):
            # One side for all: nothing is ever moved, so only the common prefix counts.
            source = np.full(len(self._wanted_ids), -1, dtype=np.int64)
            length = min(len(order), len(source))
            differ = resident_ids[:length] != self._wanted_ids[:length]
            length = int(differ.argmax()) if differ.any() else length
            source[:length] = np.arange(length)
        else:
            source = match_rows(resident_ids, resident_sides, self._wanted_ids, self._wanted_sides)
        missing = np.flatnonzero(source < 0)
        held = np.flatnonzero(source >= 0)
        slots = order[source[held]]
        is_moved = cache.positions[slots] != held
        dropped = np.delete(order, source[held])
        if len(missing) or is_moved.any() or (cache.positions[dropped] < len(source)).any():
            self._logits = None
        self._make_room(self, len(source))
        cache.turn(slots[is_moved], held[is_moved])
        cache.record("provenance")[slots[is_moved]] = TURNED
        cache.record("sides")[slots] = self._wanted_sides[held]
        cache.remove(dropped)
        return missing

    def _extend(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        sides: NDArray[np.int64],
        check: Check,
    ) -> Tensor:
        """Append rows and compute them; on any error they are taken back.

        Returns:
            (vocab_size,) logits after the last of them.
        """
        cache = self._cache_for_window()
        slots = cache.append(token_ids, positions)
        cache.record("sides")[slots] = sides
        try:
            logits = self._compute(slots, check)
        except BaseException:
            cache.remove(slots)
            raise
        self._count_forwarded(slots)
        return logits

    def _compute(self, slots: Slots, check: Check) -> Tensor:
        cache, decoder = self._cache_for_window(), self.model.decoder
        hidden = decoder.forward(cache, slots, check)
        cache.mark_computed(slots)
        return decoder.logits(hidden[-1:])[0]

    def _decode(self, token_id: int, check: Check) -> Tensor:
        """Append one generated token after all rows; it stays until a layout does not want it."""
        cache = self._cache_for_window()
        position = cache.positions.max() + 1
        return self._extend(
            np.array([token_id]), np.array([position]), self._wanted_sides[-1:], check
        )

    def _logits_after_prompt(self, check: Check) -> Tensor:
        """Return the (vocab_size,) logits of the layout's last row, computing it if need be."""
        if self._logits is None:
            cache = self._cache_for_window()
            last = np.flatnonzero(cache.positions == len(self._wanted_ids) - 1)
            self._logits = self._compute(last, check)
            self._count_forwarded(last)
        return self._logits

    def _recompute_lowest_stale(self, max_rows: int, check: Check) -> Slots:
        """Recompute a chunk of stale rows in order of position; return their slots."""
        cache = self._cache_for_window()
        start = cache.num_fresh
        end = start + min(self._chunk_tokens, max_rows, self.num_stale)
        slots = cache.by_position()[start:end]
        logits = self._compute(slots, check)
        cache.record("provenance")[slots] = KEPT
        self._logits = logits if end == len(self._wanted_ids) else None
        return slots

    def _count_forwarded(self, slots: Slots) -> None:
        self._cache_for_window().record("provenance")[slots] = RECOMPUTED
        self.num_rows_forwarded += len(slots)


def _shifted(offset: int, edits: Sequence[Edit], *, after_insertion: bool) -> int:
    """Return where an offset lies after edits that are sorted and in offsets before any of them."""
    moved = offset
    for start, end, text in edits:
        if end < offset or (end == offset and (start < end or after_insertion)):
            moved += len(text) - (end - start)
        elif start < offset:
            moved += start - offset + (len(text) if after_insertion else 0)
    return moved


def _common_prefix(first: str, second: str) -> int:
    """Return how many leading characters agree, by bisection over slices compared in C."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
