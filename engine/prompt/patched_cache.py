"""The cache of one document's prompt, patched to the prompt's tokens."""

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
from .layout import WANTED_KEY, SegmentKey
from .placement import KEPT, RECOMPUTED, Placement, Wanted
from .policy import Policy

Ints = NDArray[np.int64]

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


class PatchedCache:
    """Rows for a prompt's tokens, in order of position, and after them what was generated.

    Every method that takes `check` may be left by what it raises and simply be called again: rows
    already computed stay, a half computed chunk is dropped.

    Attributes:
        num_rows_forwarded: rows computed so far, decoding included, healing excluded.
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
        self.decoder = decoder
        self._capacity = capacity
        self._policy = policy
        self._chunk_tokens = chunk_tokens
        self._cache: KVCache | None = None
        self.dependencies: Dependencies | None = None
        self._placement: Placement | None = None
        self._max_dropped_bytes: int | None = None
        self._wanted = Wanted(_NO_ROWS, _NO_ROWS, {}, 0)
        self._numbers: dict[SegmentKey, int] = {}  # of every segment there ever was
        self._version = 0  # of the prompt
        self._patched_version = -1  # of the prompt that the rows are those of
        self._last_logits: _LastLogits | None = None
        self._is_owing = False  # rows have changed that others leaned on, and none is repaired
        # What all rows owed when healing by worth began; None: it has not, since rows changed.
        self._owed_at_first: float | None = None

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
        """Rows of the prompt that are not what a full prefill would give."""
        if self._cache is None:
            return 0
        return max(0, min(self.num_tokens, self._cache.num_rows) - self._cache.num_fresh)

    def drop(self) -> None:
        """Give the memory back; the next `patch` prefills."""
        self._cache = self.dependencies = self._placement = self._last_logits = None
        self._patched_version = -1

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
        # What is generated after the last token continues the last segment. Behind a mark of what
        # is wanted that is the mark's: it saw the mark, and the text that it becomes does not.
        counts[-1] += 1
        segment_of, token_ids = np.repeat(numbers, counts), np.concatenate(tokens)
        num_text = len(token_ids) - len(segments.get(WANTED_KEY, ()))
        return Wanted(token_ids, segment_of, dict(zip(numbers, tokens, strict=True)), num_text)

    def patch(self, check: Check, pass_tokens: int | None = None) -> None:
        """Keep, turn and drop rows under the policy and compute the missing ones in order.

        Args:
            check: called within a pass; raises to leave it, and its rows.
            pass_tokens: rows of one pass at most; None: as many as usual.

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
            at_once = pass_tokens or self._chunk_tokens
            for start in range(0, len(missing), at_once):
                at = missing[start : start + at_once]
                is_final = start + at_once >= len(missing)
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
