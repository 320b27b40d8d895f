"""The cache of one document's prompt: patched to the prompt's tokens, repaired, healed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model.decoder import Check, Decoder
from ..model.kv_cache import KVCache, Slots
from ..model.passes import AttentionRecord
from .dependencies import Dependencies, recorded_layers
from .layout import SegmentKey
from .placement import KEPT, RECOMPUTED, REPAIRED, Placement, Wanted
from .policy import Policy
from .repair import DISAGREEMENT, RepairLimit, choose, disagreement, owed, stale_rows, worth

Ints = NDArray[np.int64]

# Of repair before a completion, at most.
_ROUNDS = 2
# Healing by what rows are worth ends when so much of it is left: over four edits of the evaluation
# sets it took a quarter of the CPU time of healing all, and left a KL of 0.00002 to 0.003; down to
# a twentieth it took as long as healing all, for hardly less. Where only so few rows are stale to
# the end, computing them all, in order, makes the whole cache exact.
_LEFT_UNHEALED, _SHORT_TAIL = 0.4, 256

_NO_ROWS: Slots = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Counts:
    """The prompt's rows by where they came from since the previous completion."""

    num_wanted: int
    num_kept: int
    num_turned: int
    num_repaired: int
    num_recomputed: int


class _LastLogits(NamedTuple):
    """Logits after the prompt, and the state of prompt and rows that they were computed in."""

    logits: Tensor
    state: tuple[int, int]


class _Appended(NamedTuple):
    """Rows to be computed in a `with` block; left by any error, it takes them back."""

    cache: KVCache
    slots: Slots

    def __enter__(self) -> Slots:
        return self.slots

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.cache.remove(self.slots)


class PromptCache:
    """Rows for a prompt's tokens, in order of position, and after them what was generated.

    Every method that takes `check` may be left by what it raises and simply be called again: rows
    already computed stay, a half computed chunk is dropped.

    Attributes:
        num_rows_forwarded: rows computed so far, decoding included, healing excluded.
        num_rows_healed: rows recomputed by `heal`.
        decoder: the model.
        dependencies: what the rows leaned on, under a policy that repairs.
    """

    def __init__(self, decoder: Decoder, capacity: int, policy: Policy, chunk_tokens: int) -> None:
        """Start empty; no memory is taken before the first patch.

        Args:
            decoder: the model.
            capacity: rows at most.
            policy: how a change of the prompt is served.
            chunk_tokens: rows in one forward pass at most.
        """
        self.num_rows_forwarded = 0
        self.num_rows_healed = 0
        self.decoder = decoder
        self._capacity = capacity
        self._policy = policy
        self._chunk_tokens = chunk_tokens
        self._cache: KVCache | None = None
        self.dependencies: Dependencies | None = None
        self._placement: Placement | None = None
        self._max_dropped_bytes: int | None = None
        self._wanted = Wanted(_NO_ROWS, _NO_ROWS, {})
        self._numbers: dict[SegmentKey, int] = {}  # of every segment there ever was
        self._version = 0  # of the prompt
        self._patched_version = -1  # of the prompt that the rows are those of
        self._last_logits: _LastLogits | None = None
        self._is_owing = False  # rows have changed that others leaned on, and none is repaired
        self._owed_at_first: float | None = None  # by all rows, when healing by worth began
        self._is_of_other_weights = False  # rows are, and healing is not through with them

    @property
    def token_ids(self) -> Ints:
        """Tokens of the prompt, only to be read."""
        return self._wanted.token_ids

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._wanted.token_ids)

    @property
    def num_bytes(self) -> int:
        """Memory that the cache holds, and what it keeps of dropped rows."""
        num_bytes = self.num_dropped_bytes
        return num_bytes if self._cache is None else num_bytes + self._cache.num_bytes

    @property
    def num_dropped_bytes(self) -> int:
        """Memory of dropped rows that are kept."""
        placement = self._placement
        return 0 if placement is None or placement.dropped is None else placement.dropped.num_bytes

    def bound_dropped(self, num_bytes: int) -> None:
        """Keep at most so many bytes of dropped rows, from now on."""
        self._max_dropped_bytes = num_bytes
        if self._placement is not None and self._placement.dropped is not None:
            self._placement.dropped.bound(num_bytes)

    @property
    def num_stale(self) -> int:
        """Rows of the prompt that `heal` would recompute."""
        if self._cache is None:
            return 0
        return max(0, min(self.num_tokens, self._cache.num_rows) - self._cache.num_fresh)

    def drop(self) -> None:
        """Give the memory back; the next `patch` prefills."""
        self._cache = self.dependencies = self._placement = self._last_logits = None
        self._patched_version = -1

    def note_other_weights(self) -> None:
        """Take all rows for stale: the model's weights have changed, and nothing else.

        A policy that repairs or turns keeps them, for repair and healing to compute again; under
        another one the next `patch` prefills.
        """
        cache = self._cache
        if cache is None:
            return
        if not self._policy.keeps_dropped:
            self.drop()
            return
        cache.num_fresh = 0
        cache.mark_changed()
        self._places.forget_all()
        if self.dependencies is not None:
            self.dependencies.debt[:] = 1
        self._is_owing = self._is_of_other_weights = True
        self._owed_at_first = None

    # Following the prompt

    def set_prompt(self, segments: Mapping[SegmentKey, Ints]) -> None:
        """Say what the prompt is now; `patch` makes the rows.

        Args:
            segments: tokens of each segment of the layout, in order; rows are only reused within
                one. What is generated continues the last.
        """
        wanted = self._numbered(segments)
        is_same = np.array_equal(wanted.token_ids, self._wanted.token_ids) and np.array_equal(
            wanted.segment_of, self._wanted.segment_of
        )
        if is_same and not self._policy.starts_anew:
            return
        self._version += 1
        self._wanted = wanted
        if self._policy.starts_anew and self._cache is not None:
            self._cache.clear()

    def num_missing(self, segments: Mapping[SegmentKey, Ints]) -> int:
        """Return how many rows `patch` would compute for a prompt; no row is touched.

        Args:
            segments: as for `set_prompt`.
        """
        wanted = self._numbered(segments)
        if self._placement is None or self._policy.starts_anew:
            return len(wanted.token_ids)
        return self._placement.num_missing(wanted)

    def _numbered(self, segments: Mapping[SegmentKey, Ints]) -> Wanted:
        numbers = [self._numbers.setdefault(key, len(self._numbers)) for key in segments]
        tokens = list(segments.values())
        counts = [*map(len, tokens)]
        counts[-1] += 1  # what is generated after the last token continues the last segment
        segment_of = np.repeat(numbers, counts)
        return Wanted(np.concatenate(tokens), segment_of, dict(zip(numbers, tokens, strict=True)))

    def patch(self, check: Check) -> None:
        """Keep, turn and drop rows under the policy and compute the missing ones in order.

        Raises:
            OutOfMemory: no memory for the cache.
            ContextTooLong: more tokens than the capacity.
        """
        if self._patched_version == self._version:
            return
        cache = self.rows
        generation = cache.generation
        try:
            missing = self._places.place(self._wanted)
            for start in range(0, len(missing), self._chunk_tokens):
                at = missing[start : start + self._chunk_tokens]
                is_final = start + self._chunk_tokens >= len(missing)
                with self.appended(self.token_ids[at], at) as slots:
                    if is_final and at[-1] != self.num_tokens - 1:
                        # The cursor's row goes along: a completion then finds its logits.
                        slots = np.concatenate([slots, self._last_row()])
                        cache.mark_changed()  # what others saw of it is past
                    record, started_at = self._asked(slots), time.perf_counter()
                    logits = self.decoder.last_logits(cache, slots, check, record)
                    self._note(slots, record, started_at)
                self.count_forwarded(slots)
                if is_final:
                    self._keep_logits(logits)
        finally:  # left half done, it has changed rows all the same
            if cache.generation != generation:
                self._is_owing, self._owed_at_first = not self._places.is_settled(), None
        cache.by_position()  # for the next patch; a GPU is still at work
        self._patched_version = self._version

    def heal(self, max_rows: int, check: Check) -> int:
        """Recompute stale rows in order, from the lowest stale position.

        After the last of them the cache equals a full prefill.

        Returns:
            The number of rows done; 0 when all are fresh.
        """
        done = 0
        while self.num_stale and done < max_rows:
            slots = self._recompute_lowest_stale(max_rows - done, check)
            self.num_rows_healed += len(slots)
            done += len(slots)
        return done

    @property
    def num_worthwhile(self) -> int:
        """Rows that `heal_worthwhile` would still compute; 0 when little is left to gain."""
        if self._is_healed_in_order():
            return self.num_stale
        assert self.dependencies is not None, "else they are healed in order"
        owes = owed(self.dependencies)
        owes[self._places.is_done()] = 0
        of_stale = owes[stale_rows(self.rows, self.num_tokens)]
        total = float(of_stale.sum())
        if self._owed_at_first is None:
            self._owed_at_first = total
        excess = total - _LEFT_UNHEALED * self._owed_at_first
        if excess <= 0 or total <= 0:
            return 0
        largest_first = np.cumsum(-np.sort(-of_stale))
        return int(np.searchsorted(largest_first, excess)) + 1

    def heal_worthwhile(self, max_rows: int, check: Check) -> int:
        """Recompute stale rows in the order of what they are worth, until little is left to gain.

        No row is fresh by that, but where few are stale: those are recomputed in order, to the end.

        Returns:
            The number of rows done; 0 when it is over.
        """
        if self._is_healed_in_order():
            return self.heal(max_rows, check)
        assert self.dependencies is not None, "else they are healed in order"
        if not (num_rows := self.num_worthwhile):
            self._settle()  # what repair would do is done
            return 0
        slots = self._chosen(self.dependencies, min(num_rows, max_rows))
        with_last = np.append(slots, self._last_row())
        self._keep_logits(self._recompute(with_last, check))
        self._places.note_done(slots)
        self.num_rows_healed += len(with_last)
        return len(with_last)

    def _is_healed_in_order(self) -> bool:
        """Return whether every stale row is worth it: few are, or other weights computed them."""
        self._is_of_other_weights = self._is_of_other_weights and self.num_stale > 0
        is_short = self.num_stale <= _SHORT_TAIL or self.dependencies is None
        return is_short or self._is_of_other_weights

    def heal_now(self, check: Check) -> None:
        """Heal to the end as part of serving a completion (policy "heal")."""
        while self.num_stale:
            self.count_forwarded(self._recompute_lowest_stale(self.num_stale, check))

    def repair(self, limit: RepairLimit, check: Check) -> int:
        """Compute again the stale rows that are worth most, and the cursor's row with them.

        Once for every change of the rows: what is typed on at the end makes nothing stale. Another
        round is spent where the first has changed what the model is about to say.

        Returns:
            The number of rows done.
        """
        if not self._is_owing or self.dependencies is None or not self.num_stale:
            return 0
        done = 0
        before = self.logits(check)  # what the cursor's row attends to
        for _ in range(_ROUNDS):
            max_rows = limit.rows(self.num_tokens, self.decoder.cost)
            slots = self._chosen(self.dependencies, max_rows)
            if not len(slots):
                break
            self.recompute(slots, check)
            done += len(slots)
            after = self.logits(check)
            if disagreement(before, after) < DISAGREEMENT:
                break
            before = after
        self._settle()
        return done

    def _settle(self) -> None:
        self._is_owing = False
        self._places.note_settled()

    def _chosen(self, dependencies: Dependencies, max_rows: int) -> Slots:
        """Return the stale rows that are worth most among those that are not done.

        A row that owes through others that are stale owes something each time; it is done once.
        """
        worths = worth(dependencies)
        worths[self._places.is_done()] = -1
        slots = choose(self.rows, worths, self.num_tokens, max_rows)
        return slots[worths[slots] >= 0]

    def recompute(self, slots: Slots, check: Check) -> None:
        """Compute rows of the prompt again, in order of position, and the cursor's with them."""
        if len(slots):
            logits = self._recompute(np.append(slots, self._last_row()), check)
            self.count_forwarded(slots)
            self.rows.record("provenance")[slots] = REPAIRED
            self._places.note_done(slots)
            self.num_rows_forwarded += 1  # the cursor's
            self._keep_logits(logits)

    # Reading

    def logits(self, check: Check) -> Tensor:
        """Return the (vocab_size,) float32 logits after the prompt."""
        kept = self._last_logits
        if kept is not None and kept.state == self._state():
            return kept.logits
        last = self._last_row()
        logits = self._recompute(last, check)
        self.count_forwarded(last)
        return self._keep_logits(logits)

    @property
    def num_rows(self) -> int:
        """Rows there are, generated ones included."""
        return self.rows.num_rows

    @property
    def room(self) -> int:
        """Rows that may still be appended."""
        return self._capacity - self.rows.num_rows

    def drop_generated(self, num_kept: int = 0) -> None:
        """Drop what was generated after the prompt but the first tokens of it, to generate anew."""
        cache = self.rows
        cache.remove(np.flatnonzero(cache.positions >= self.num_tokens + num_kept))

    def take_counts(self) -> Counts:
        """Count the prompt's rows by provenance since the previous call, and start anew."""
        cache = self.rows
        provenance = cache.record("provenance")
        of_prompt = provenance[cache.positions < self.num_tokens]
        provenance[:] = KEPT
        return Counts(len(of_prompt), *np.bincount(of_prompt, minlength=4).tolist())

    # Rows

    @property
    def rows(self) -> KVCache:
        """The cache itself; its memory is reserved on first use."""
        if self._cache is None:
            decoder = self.decoder
            self._cache = KVCache(decoder.config, self._capacity, decoder.dtype, decoder.device)
            if self._policy.repairs:
                layers = recorded_layers(decoder.config.num_layers)
                self.dependencies = Dependencies(self._cache, layers)
            self._placement = Placement(self._cache, self._policy, self.dependencies)
            if self._max_dropped_bytes is not None:
                self.bound_dropped(self._max_dropped_bytes)
        return self._cache

    @property
    def _places(self) -> Placement:
        assert self._placement is not None, "made with the cache"
        return self._placement

    def _last_row(self) -> Slots:
        return np.flatnonzero(self.rows.positions == self.num_tokens - 1)

    def appended(self, token_ids: Ints, positions: Ints) -> _Appended:
        """Append rows, for a pass to compute."""
        cache = self.rows
        slots = cache.append(token_ids, positions)
        segment_of = self._wanted.segment_of
        cache.record("segment")[slots] = segment_of[np.minimum(positions, self.num_tokens)]
        return _Appended(cache, slots)

    def _recompute(self, slots: Slots, check: Check) -> Tensor:
        """Compute rows that are there already: what others saw of them is past."""
        cache = self.rows
        cache.mark_changed()
        record, started_at = self._asked(slots), time.perf_counter()
        logits = self.decoder.last_logits(cache, slots, check, record)
        self._note(slots, record, started_at)
        return logits

    def _asked(self, slots: Slots) -> AttentionRecord | None:
        """Return what a pass over these rows is to leave behind."""
        self._places.forget(slots)  # left half computed, a row is nothing
        return None if self.dependencies is None else self.dependencies.asked()

    def _note(self, slots: Slots, record: AttentionRecord | None, started_at: float) -> None:
        """Note that rows were just computed, what they lean on, and what that took."""
        if self.decoder.device.type != "cuda":  # a GPU is still at work
            self.decoder.cost.observe(len(slots), (time.perf_counter() - started_at) * 1e3)
        self.rows.mark_computed(slots)
        self._places.note_exact(slots)
        if self.dependencies is not None and record is not None:
            self.dependencies.note(slots, record)

    def _recompute_lowest_stale(self, max_rows: int, check: Check) -> Slots:
        """Recompute a chunk of stale rows in order of position; return their slots."""
        cache = self.rows
        start = cache.num_fresh
        end = start + min(self._chunk_tokens, max_rows, self.num_stale)
        slots = cache.by_position()[start:end]
        logits = self._recompute(slots, check)
        cache.record("provenance")[slots] = KEPT
        if end == self.num_tokens:
            self._keep_logits(logits)
        return slots

    def _keep_logits(self, logits: Tensor) -> Tensor:
        self._last_logits = _LastLogits(logits, self._state())
        return logits

    def _state(self) -> tuple[int, int]:
        """Return what the logits after the prompt depend on: its tokens, and its rows."""
        return self._version, self.rows.generation

    def count_forwarded(self, slots: Slots) -> None:
        """Note that rows were computed, and that it was not healing."""
        self.rows.record("provenance")[slots] = RECOMPUTED
        self.num_rows_forwarded += len(slots)
