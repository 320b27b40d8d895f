"""Speculative decoding that changes nothing but the time: drafts, verified by the whole model.

A draft is a fixed token. It is accepted if the token that is picked from the whole model's logits
is the same: what is picked is what would have been picked without drafts, greedily or from the same
seed. (For such drafts the acceptance rule of Leviathan et al., arXiv 2211.17192, section 2.3,
accepts as often.) Where drafts come from:

- Prompt lookup: what followed the last tokens where they stood before.
- Self-speculation: what some of the layers say through the final norm and the head. These are the
  first ones (LayerSkip, arXiv 2404.16710, section 4.3), or all but a set of sub-layers (SWIFT,
  arXiv 2410.06916). The layers from the first one that was not run as a whole then verify several
  rows at once, from the hidden states and the cache that those before it left, and write over the
  keys and values that drafting has made in them.

How much is drafted, nothing included, and from where, is decided at each step by what it is
expected to gain for its cost (goodput: SmartSpec, arXiv 2406.14066, section 4).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..exits.skip_file import share_of
from ..model.decoder import Check
from ..model.heads import DraftHead, Summary
from ..model.pass_cost import StepCost
from .decoding_cache import DecodingCache
from .draft import LONGEST_MATCH, Draft, DraftRecord, OwnDrafts, PromptLookup, Rates

# Rows of one step at most: so many go through the C library in one call.
MOST_ROWS = 16
# Of the layers, those that draft: of the embedded model's 30 the first 6, which were trained as an
# exit, have the last one's likeliest token three times in four; the first 14 four times in five,
# and cost more than twice as much.
_DRAFTING_SHARE = 6 / 30
# Where self-speculation gains nothing it is tried again after so many steps.
_TRIED_AGAIN = 128
_FOLLOW_GAIN = 0.05


class Drafter(NamedTuple):
    """Some of a model's layers, that draft.

    Attributes:
        kept: the first layers: what they compute of a drafted row stays.
        skipped: what a drafted row is not put through of the layers behind them, as for `Rows`;
            None: it is put through none of these.
        share: of all layers' cost, that of the layers that a drafted row is put through.
        worth: what its drafts have been worth.
    """

    kept: range
    skipped: bytes | None
    share: float
    worth: OwnDrafts


@dataclass(frozen=True, slots=True)
class Decoding:
    """One completion, for every way to compute its tokens.

    Attributes:
        prompt: the prompt's rows; nothing is generated.
        check: called between layers.
        lookup: finds drafts in texts; None: there are none.
        record: what drafts have been worth, kept up to date; its sources say what may draft.
        is_last: whether a completion ends with a token: nothing is drafted behind it.
        max_tokens: so many are taken, about; nothing is drafted beyond.
    """

    prompt: DecodingCache
    check: Check
    lookup: PromptLookup | None
    record: DraftRecord
    is_last: Callable[[int], bool]
    max_tokens: int


class _Ahead(NamedTuple):
    """A drafted token, the logits after it if its row is there, and whom it counts for."""

    token_id: int
    logits: Tensor | None
    summary: Summary | None
    rates: Rates
    number: int


class SpeculativeSteps:
    """Decode steps that run ahead of what is taken; rows that were of no use are dropped."""

    def __init__(self, decoding: Decoding, skips: bytes | None = None) -> None:
        """Take nothing yet.

        Args:
            decoding: the completion.
            skips: sub-layers that a draft may leave out, as for `Rows`; None: there is no such set.
        """
        self._prompt, self._check = decoding.prompt, decoding.check
        self._lookup, self._record = decoding.lookup, decoding.record
        self._is_last, self._max_tokens = decoding.is_last, decoding.max_tokens
        decoder = self._prompt.decoder
        self._cost: StepCost = decoder.step_cost
        self._least_likely = 0.0  # of looked up tokens
        self._num_layers = num_layers = decoder.config.num_layers
        num_first = max(1, round(num_layers * _DRAFTING_SHARE))
        self._drafters: list[Drafter] = []
        # On a GPU a step is one graph: in parts, one row by one, it took longer than drafts gave.
        is_graph = decoder.device.type == "cuda" and math.isfinite(self._record.exits.gain)
        if "exits" in self._record.sources and num_first < num_layers and not is_graph:
            share = num_first / num_layers
            self._drafters.append(Drafter(range(num_first), None, share, self._record.exits))
        if "skips" in self._record.sources and skips is not None and any(skips):
            kept = range(next(at for at, each in enumerate(skips) if each))
            share = share_of(skips, decoder.config)
            self._drafters.append(Drafter(kept, skips, share, self._record.skips))
        self._taken: list[int] = []  # tokens that have rows
        self._ahead: deque[_Ahead] = deque()
        self._summaries: list[Summary | None] = []  # of rows that were computed last
        self._summary: Summary | None = None  # of the logits that were returned last
        self._num_steps, self._num_layer_runs = 0, 0.0
        # When the last pass began, and who is told what it took.
        self._started_at: float = 0.0
        self._note: Callable[[float], None] = _pass_over

    def __call__(self, token_id: int) -> Tensor:
        """Take one more token, as `Step` says."""
        self._num_steps += 1
        self._observe()
        if self._lookup is not None:
            self._lookup.take(token_id)
        if self._ahead:
            drafted = self._ahead.popleft()
            is_right = drafted.token_id == token_id
            drafted.rates.note(drafted.number, came_true=is_right)
            self._record.num_accepted += is_right
            if is_right and drafted.logits is not None:
                self._taken.append(token_id)
                self._summary = drafted.summary
                return drafted.logits
            self._drop_ahead()
        self._summaries = []
        logits = self._compute(token_id)
        self._summary = self._summaries[0] if self._summaries else None
        self._taken.append(token_id)
        return logits

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that were returned last."""
        return self._summary

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token, those of useless drafts included."""
        if not self._num_steps:
            return float(self._prompt.decoder.config.num_layers)
        return self._num_layer_runs / self._num_steps

    @property
    def layers(self) -> range | None:
        """Layers that every row goes through, as `Steps` says."""
        return range(self._num_layers)

    def pause(self) -> None:
        """Drop what was drafted and not taken."""
        self._drop_ahead()

    def take(self, token_id: int) -> None:
        """Take note of a token, as `Steps` says."""
        self._num_steps += 1
        self._num_layer_runs += self._num_layers
        self._taken.append(token_id)
        if self._lookup is not None:
            self._lookup.take(token_id)

    def end(self) -> None:
        """Drop what was drafted and not taken."""
        self.pause()

    def _observe(self) -> None:
        """Note what the last pass took: a token was picked of its logits, so a GPU has done it."""
        self._note((time.perf_counter() - self._started_at) * 1e3)
        self._note = _pass_over

    def _drop_ahead(self) -> None:
        started_at, num_rows = time.perf_counter(), self._prompt.num_rows
        self._ahead.clear()
        self._prompt.drop_generated(len(self._taken))
        if self._prompt.num_rows < num_rows:
            self._record.worth.note_drop((time.perf_counter() - started_at) * 1e3)

    @cached_property
    def _draft_head(self) -> DraftHead:
        return self._prompt.decoder.draft_head(self._prompt.token_ids)

    # What to draft

    def _compute(self, token_id: int) -> Tensor:
        """Compute a token's row, and the rows of as many drafts as are worth it."""
        # The last token of a completion needs no row.
        most = min(MOST_ROWS, self._prompt.room, self._max_tokens - 1 - len(self._taken)) - 1
        draft, gain = self._looked_up(most)
        drafter = self._drafter() if most > 0 else None
        if drafter is not None and gain <= max(drafter.worth.gain, 1.0):
            drafter.worth.waited = 0
            return self._drafted(token_id, most, drafter)
        return self._verified(token_id, draft)

    def _drafter(self) -> Drafter | None:
        """Return whose drafts gain most, or were not made for long; None if none gains anything."""
        for each in self._drafters:
            each.worth.waited += 1
        ranked = [(each.worth.waited > _TRIED_AGAIN, each.worth.gain) for each in self._drafters]
        best = max(ranked, default=(False, 0.0))
        return self._drafters[ranked.index(best)] if best > (False, 1.0) else None

    def _looked_up(self, most: int) -> tuple[Draft, float]:
        """Return the part of a looked up draft that gains most, and tokens in the time of one."""
        worth, num_slots = self._record.worth, self._prompt.num_rows
        if self._lookup is None or most < 1 or not worth.is_due(self._cost.ms(1, num_slots)):
            return Draft([], 0), 1.0
        started_at = time.perf_counter()
        found, gain = self._worthwhile(self._lookup.draft(most), num_slots)
        worth.note_search(gain, (time.perf_counter() - started_at) * 1e3)
        return found, gain

    def _worthwhile(self, found: Draft, num_slots: int) -> tuple[Draft, float]:
        """Return the part of a draft that gains most, and tokens in the time of one."""
        rates, drop_ms = self._record.lookup, self._record.worth.drop_ms
        costs = self._cost.all_ms(len(found.token_ids) + 1, num_slots)
        expected = reached = best = 1.0
        num_best = 0
        for at, token_id in enumerate(found.token_ids):
            reached *= rates.of(min(found.num_matched + at, LONGEST_MATCH))
            if reached < self._least_likely:
                break
            expected += reached
            gain = expected * costs[0] / (costs[at + 1] + (1 - reached) * drop_ms)
            if gain > best:
                best, num_best = gain, at + 1
            if self._is_last(token_id):
                break
        return Draft(found.token_ids[:num_best], found.num_matched), best

    # Drafting and verifying

    def _verified(self, token_id: int, draft: Draft) -> Tensor:
        """Compute a token and a draft in one pass."""
        first, *others = self._rows([token_id, *draft.token_ids])
        assert first is not None, "what is not drafted is not wrong"
        self._record.num_drafted += len(draft.token_ids)
        for at, (drafted, after) in enumerate(zip(draft.token_ids, others, strict=True)):
            number = min(draft.num_matched + at, LONGEST_MATCH)
            summary = self._summaries[at + 1] if self._summaries else None
            self._ahead.append(_Ahead(drafted, after, summary, self._record.lookup, number))
        return first

    def _rows(self, token_ids: Sequence[int]) -> Sequence[Tensor | None]:
        """Compute a token's row and those of a draft; return the logits after each.

        None where a row was not computed to the end, as a draft before it was found wrong.
        """
        num_rows, num_slots = len(token_ids), self._prompt.num_rows
        self._note = partial(self._cost.observe, num_rows, num_slots)
        self._started_at = time.perf_counter()
        found = self._prompt.decode_several(token_ids, self._check).read()
        self._num_layer_runs += num_rows * self._num_layers
        self._summaries = [summary for _, summary in found]
        return [logits for logits, _ in found]

    def _drafted(self, token_id: int, most: int, drafter: Drafter) -> Tensor:
        """Draft with some of the layers as long as it pays, then verify all with the rest."""
        prompt, record, head = self._prompt, self._record, self._draft_head
        self._started_at, num_slots = time.perf_counter(), prompt.num_rows
        kept, rest = drafter.kept, range(drafter.kept.stop, self._num_layers)
        ms = partial(
            self._cost.drafting_ms,
            num_slots=num_slots,
            share=drafter.share,
            kept=len(kept) / self._num_layers,
            head_share=head.share,
        )
        hidden: list[Tensor] = []
        drafted: list[tuple[int, int]] = []  # tokens, and the classes of their probabilities
        expected = reached = 1.0
        fed = token_id
        while True:
            state = prompt.begin([fed], self._check, kept)
            hidden.append(state)
            if drafter.skipped is not None:
                state = prompt.look_ahead(state, self._check, rest, drafter.skipped)
            fed, probability = head.best(state)
            number = int(10 * probability)
            drafted.append((fed, number))
            num_rows = len(hidden)
            reached *= drafter.worth.rates.of(number)
            is_over = num_rows > most or self._is_last(fed)
            if is_over or (expected + reached) * ms(num_rows) <= expected * ms(num_rows + 1):
                break
            expected += reached
        self._num_layer_runs += num_rows * drafter.share * self._num_layers
        fed_ids = [token_id, *(drafted_id for drafted_id, _ in drafted[:-1])]
        first, *others = self._finished(fed_ids, torch.cat(hidden), rest, ms(num_rows))
        assert first is not None, "what is not drafted is not wrong"
        gain = expected * self._cost.ms(1, num_slots) / ms(num_rows)
        worth = drafter.worth
        if math.isfinite(worth.gain):
            worth.gain += _FOLLOW_GAIN * (gain - worth.gain)
        record.num_drafted += len(drafted)
        for at, (drafted_id, number) in enumerate(drafted):
            after = others[at] if at < len(others) else None
            self._ahead.append(_Ahead(drafted_id, after, None, worth.rates, number))
        return first

    def _finished(
        self, token_ids: Sequence[int], hidden: Tensor, rest: range, expected_ms: float
    ) -> Sequence[Tensor | None]:
        """Take drafted rows through layers that all of them lack; return the logits after each.

        Args:
            token_ids: of the rows.
            hidden: (n, hidden_size) their states.
            rest: the layers.
            expected_ms: what drafting and this are expected to take.
        """
        logits = self._prompt.finish(hidden, self._check, rest)
        self._num_layer_runs += len(hidden) * len(rest)
        self._note = partial(self._cost.observe_drafting, expected_ms)
        return list(logits)


def _pass_over(ms: float) -> None:
    """Note nothing."""
