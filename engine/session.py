"""One document: its text, the prompt for the cursor, and the cache that follows both."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .exits.stop import StopWatch
from .generation.branches import Branches
from .generation.candidates import Candidates
from .generation.decoding_cache import DecodingCache
from .generation.draft import PastTexts, PromptLookup
from .generation.steps import Steps, generate, steps_of
from .generation.writing import Generated, write
from .loaded_model import Model
from .model.decoder import Check
from .prompt.document import Document, Edit, shifted
from .prompt.fim import wanted_of
from .prompt.growing_window import WHOLE, ColdLimit, GrowingWindow, Prompt, PromptEncoder
from .prompt.layout import SegmentKey
from .prompt.other_files import fitting
from .prompt.policy import find_policy
from .prompt.repair import BY_SHARE, RepairLimit
from .syntax.languages import language_of
from .wire.config import Completion, CompletionParams
from .wire.errors import BadPosition, Interrupted

Ints = NDArray[np.int64]
_SHARE_OF_OTHERS = 4  # of the window, one part


class Session:
    r"""A document whose cache is patched instead of prefilled.

    Text changes at once and cheaply (`edit`); rows follow in `sync`. Every method that takes
    `check` may be left by what it raises and simply be called again. Offsets are code points of the
    document as its editor has it; the prompt, and what is generated, have "\n" for its line ends.

    Attributes:
        path: its file name.
        layout_name: "spm", "psm", or "prefix" for a model that only continues text.
        policy: how edits are served.
        repair_limit: how many rows are repaired before a completion, if the policy repairs.
        heals: what `heal` does, one of `config.HEALS`.
        cold_limit: how many rows are computed before a completion; of more the window is narrowed.
        window: lays out and encodes the prompt, narrow at a place where nothing is computed.
        prompt: the cache's rows for the prompt, as of the last `sync`.
        drafts: what drafts have been worth: the model's record.
        past: texts that were just deleted or completed, for drafts.
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
        repair_limit: RepairLimit = BY_SHARE,
        heals: str = "full",
        cold_limit: ColdLimit = WHOLE,
    ) -> None:
        """Open a document; nothing is computed yet.

        Args:
            model: shared with other sessions.
            text: the document.
            path: relative to its workspace where it has one; the model may be told.
            policy: how edits are served, one of `config.POLICIES`.
            layout: "spm" or "psm"; None takes the model's own.
            chunk_tokens: rows in one forward pass at most.
            make_room: called with the session and the rows it will hold before any are added.
            repair_limit: how many rows are repaired before a completion, if the policy repairs.
            heals: what `heal` does, one of `config.HEALS`.
            cold_limit: how many rows are computed before a completion without the window being
                narrowed, if the policy repairs.

        Raises:
            BadRequest: there is no such policy.
        """
        self.model = model
        self.path = path
        template = model.template
        self.layout_name = "prefix" if template is None else layout or template.layout
        self.policy = find_policy(policy)
        self.prompt = DecodingCache(model.decoder, model.capacity, self.policy, chunk_tokens)
        self.repair_limit = repair_limit
        self.heals = heals
        self._make_room = make_room
        self._document = Document(text)
        layout_name = self.layout_name

        def make_encoder(window_tokens: int) -> PromptEncoder:
            return PromptEncoder(
                template, model.tokenizer, layout_name, window_tokens, model.chars_per_token, path
            )

        self.cold_limit = cold_limit if self.policy.repairs else WHOLE
        self.window = GrowingWindow(make_encoder, model.window_tokens, chunk_tokens)
        # In `_document.shown`: where prefix and suffix meet; typed text may follow it.
        self._anchor: int | None = None
        self._cursor = 0
        self._num_edits = 0
        self._laid_out: tuple[object, ...] | None = None  # what the prompt is of
        self._forced = ""
        self._tokens: dict[SegmentKey, Ints] = {}  # of the prompt
        self.drafts = model.drafts
        self.past = PastTexts(lambda text: model.tokenizer.encode(text).token_ids)

    # Text

    @property
    def text(self) -> str:
        """The document."""
        return self._document.text

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits to the text: (start, end, text), all in offsets before any of them.

        Raises:
            BadPosition: an edit lies outside the text or two overlap; nothing was changed.
        """
        before = self._document.shown
        self._follow(before, self._document.edit(edits))

    def set_text(self, text: str) -> None:
        """Replace the whole text; what is still the same is found by comparing."""
        before = self._document.shown
        self._follow(before, self._document.set_text(text))

    def _follow(self, before: str, edits: Sequence[Edit]) -> None:
        """Move cursor and anchor as edits of the shown text do."""
        self._num_edits += len(edits)
        for start, end, _ in edits:
            if end > start:
                self.past.deleted(before[start:end])
        if self._anchor is not None:
            self._cursor = shifted(self._cursor, edits, after_insertion=True)
            anchor = shifted(self._anchor, edits, after_insertion=False)
            self._anchor = min(anchor, self._cursor)

    def set_cursor(self, offset: int) -> None:
        """Say where the next completion is expected: the layout's anchor.

        Raises:
            BadPosition: the offset lies outside the text.
        """
        if not 0 <= offset <= len(self.text):
            raise BadPosition(
                f"offset {offset} lies outside the text of {len(self.text)} characters"
            )
        cursor = self._document.shown_offset(offset)
        if self._anchor is not None and cursor == self._cursor:
            return  # typed on at the same place: a frozen layout keeps its tail
        self._anchor = self._cursor = cursor

    @property
    def anchor(self) -> int | None:
        """Where prefix and suffix of the layout meet; before the cursor in a frozen one."""
        return None if self._anchor is None else self._document.text_offset(self._anchor)

    @property
    def forced_text(self) -> str:
        """Text before the cursor that the model generates again: white space it is bound to."""
        return self._forced

    def show_others(self, others: Sequence[tuple[str, str]]) -> None:
        """Say what of other files is shown: path and text of each, in that order.

        Their rows are computed by `grow`, one file at a time, and prompts begin with a file when
        its rows are there. Together they get a quarter of the window; of what is longer the last
        lines are left out. Of a model that was not trained on other files nothing changes.
        """
        template = self.model.template
        if template is not None and template.header_ids and template.files == "marked":
            room = self.model.window_tokens // _SHARE_OF_OTHERS
            self.window.wanted_others = fitting(others, self.model.tokenizer, room)

    # Cache

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, as of the last layout."""
        return self.prompt.num_tokens

    @property
    def num_other_tokens(self) -> int:
        """Tokens of the prompt that are of other files, as of the last layout."""
        return sum(len(t) for key, t in self._tokens.items() if key[0] == "header" and key[1:])

    @property
    def num_stale(self) -> int:
        """Rows that are not what a full prefill would give."""
        return self.prompt.num_stale

    @property
    def is_narrow(self) -> bool:
        """Whether the prompt shows less than the whole window does; `grow` ends that."""
        return self.window.width is not None

    @property
    def has_to_grow(self) -> bool:
        """Whether `grow` has something to do: a narrow window, or other files to be shown."""
        return self.is_narrow or self.window.wanted_others != self.window.whole.others

    @property
    def shows_others(self) -> bool:
        """Whether the model sees, or will see, anything of other files."""
        return bool(self.window.wanted_others or self.window.whole.others)

    def drop_cache(self) -> None:
        """Give the cache's memory back; the next `sync` prefills."""
        self.prompt.drop()
        self._laid_out = None

    def note_other_weights(self) -> None:
        """Take what is computed for stale: the model's weights have changed."""
        self.prompt.note_other_weights()

    def sync(self, check: Check) -> None:
        """Patch the cache to the text and the anchor under the policy; without an anchor, nothing.

        Where more rows are missing than the session's limit the window is narrowed.

        Raises:
            ContextTooLong: not even the smallest window fits the cache.
            OutOfMemory: no memory for the cache.
            Cancelled, Interrupted: from `check`.
        """
        if self._anchor is None:
            return
        if self._laid_out != self._to_lay_out():
            place = self._document.shown, self._anchor, self._cursor
            self._lay_out(self.window.fit(*place, self.prompt, self.cold_limit))
        self._make_room(self, self.prompt.num_tokens)
        self.prompt.patch(check)

    def grow(self, check: Check) -> None:
        """Widen a narrow window until it is whole, a pass at a time; then show other files.

        What is left by `check` is resumed from the last pass that was completed, in shorter ones;
        in between `sync` finds the window as wide as before the step.

        Raises:
            OutOfMemory, Cancelled, Interrupted: as `sync`.
        """
        self.sync(check)
        others = self.window.whole.others
        while self.has_to_grow and self._anchor is not None:
            place = self._document.shown, self._anchor, self._cursor
            prompt, widened = self.window.next(*place, self.prompt)
            self._lay_out(prompt)
            laid_out, self._laid_out = self._laid_out, None  # if it is left, `sync` begins anew
            self._make_room(self, self.prompt.num_tokens)
            try:
                self.prompt.patch(check, self.window.pass_tokens)
            except Interrupted:
                self.window.interrupted()
                raise
            widened()
            self._laid_out = laid_out
        if others != self.window.whole.others and self.policy.repairs:
            # What all rows lean on has changed: the next completion is not to pay for that.
            self.prompt.repair(self.repair_limit, check)

    def _sync_whole(self, check: Check) -> None:
        if self.is_narrow or self._laid_out != self._to_lay_out():
            assert self._anchor is not None, "a completion has a cursor"
            self._lay_out(self.window.fit_whole(self._document.shown, self._anchor, self._cursor))
        self._make_room(self, self.prompt.num_tokens)
        self.prompt.patch(check)

    @property
    def num_to_heal(self) -> int:
        """Rows that `heal` would recompute."""
        if self.heals == "off":
            return 0
        return self.prompt.num_stale if self.heals == "full" else self.prompt.num_worthwhile

    def heal(self, max_rows: int, check: Check) -> int:
        """Recompute stale rows as the session heals; return the number done, 0 when it is over."""
        if self.heals == "off":
            return 0
        self.sync(check)
        heal = self.prompt.heal if self.heals == "full" else self.prompt.heal_worthwhile
        return heal(max_rows, check)

    def complete(
        self,
        offset: int,
        params: CompletionParams,
        check: Check,
        on_text: Callable[[str, float], None] | None = None,
        heal: bool = False,
    ) -> Completion:
        r"""Complete at a place.

        Args:
            offset: the cursor, in code points; between "\r" and "\n" it is before both.
            params: budgets and sampling.
            check: called between layers and tokens.
            on_text: receives each piece of the text once, as it comes, and its probability.
            heal: show the whole window and recompute what is stale first, whatever the policy.

        Raises:
            BadPosition, BadRequest, ContextTooLong, OutOfMemory, Cancelled, Interrupted.
        """
        started_at = time.perf_counter()
        prompt, model = self.prompt, self.model
        forwarded_before = prompt.num_rows_forwarded
        self.set_cursor(offset)
        # It stays until another is wanted: most want the same again, and find what idle time did.
        self.window.whole.wanted = wanted_of(model.template, params)
        if heal:
            self._sync_whole(check)
        else:
            self.sync(check)
        if self.policy.heals_first or heal:
            prompt.heal_now(check)
        elif self.policy.repairs:
            prompt.repair(self.repair_limit, check)
        prompt.drop_generated()
        logits = prompt.logits(check)
        num_computed = prompt.num_rows_forwarded - forwarded_before
        forced = self._forced + params.assumed
        end_ids = model.template.end_ids if model.template else model.tokenizer.end_ids
        token_bytes = model.tokenizer.token_bytes()
        make_steps = functools.partial(
            steps_of,
            prompt=prompt,
            check=check,
            record=self.drafts,
            # An adapter changes the states that exits were trained on.
            fast=None if model.decoder.is_adapted else model.exits,
            skips=model.skips.get(language_of("", self.path)),
            num_forced=len(forced.encode("utf-8", "replace")),
            end_ids=end_ids,
            token_bytes=token_bytes,
        )
        steps = make_steps(params, lookup=self._lookup)
        writing = functools.partial(
            write, end_ids=end_ids, token_bytes=token_bytes, forced=forced, check=check
        )
        # Only `fast` may change what is written; who asked for it is warned at any depth.
        may_stop = params.depth == "fast" or not params.min_probability
        rule = model.stop if params.place and may_stop else None
        watch = None if rule is None else StopWatch(rule, params.place)
        others: list[Generated] = []
        try:
            if params.num_candidates > 1:
                layers = steps.layers or range(model.decoder.config.num_layers)
                open_branches = functools.partial(Branches, prompt, check, layers)

                def another(first: Generated) -> Steps:
                    lookup = functools.partial(self._lookup, np.array(first.token_ids))
                    depth = "exact" if params.depth == "fast" else params.depth
                    return make_steps(replace(params, depth=depth), lookup=lookup)

                several = Candidates(writing, params, steps, another, open_branches)
                generated, others = several.decode(logits, on_text=on_text, watch=watch)
            else:
                first = writing(logits, params, on_text=on_text, watch=watch)
                generated = generate(first, steps, steps.summary)
        finally:
            steps.end()
        self.past.completed(generated.token_ids)
        return Completion(
            text=generated.text,
            token_ids=generated.token_ids,
            num_prompt_tokens=prompt.num_tokens,
            num_reused_tokens=max(0, prompt.num_tokens - num_computed),
            ttft_ms=(generated.first_token_at - started_at) * 1e3,
            total_ms=(time.perf_counter() - started_at) * 1e3,
            num_layers_run=steps.mean_layers,
            stop_reason=generated.stop_reason,
            probabilities=generated.probabilities,
            other_texts=tuple(other.text for other in others),
            other_stop_reasons=tuple(other.stop_reason for other in others),
            is_narrow=self.is_narrow,
            is_doubtful=generated.is_doubtful,
        )

    def _lookup(self, *more: Ints) -> PromptLookup:
        """Return what finds drafts in the text that the model sees, and in what was just there."""
        nothing = np.empty(0, dtype=np.int64)
        parts = [self._tokens.get((kind,), nothing) for kind in ("prefix", "tail", "suffix")]
        before, behind = np.concatenate(parts[:2]), parts[2]
        others = [*self.past.token_ids(), *more]
        return PromptLookup(before, behind, others, max_tokens=self.prompt.room)

    def _lay_out(self, prompt: Prompt) -> None:
        """Tell the prompt cache what the prompt is, and note the text to be generated again."""
        self._tokens = prompt.tokens
        self.prompt.set_prompt(prompt.tokens)
        self._forced = self._document.shown[prompt.layout.prompt_end : self._cursor]
        self._anchor = prompt.anchor
        self._laid_out = self._to_lay_out()

    def _to_lay_out(self) -> tuple[object, ...]:
        return self._num_edits, self._anchor, self._cursor, self.window.whole.wanted
