"""The cache of one document's prompt: patched to the wanted tokens, decoded on, healed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.decoder import Check, Decoder
from ..model.kv_cache import KVCache, Slots
from .edit_plan import Run, common_prefix, match_rows, moved_rows, rows_between

Ints = NDArray[np.int64]

# Where a row's keys and values come from since the last completion (record "provenance").
KEPT, TURNED, REPAIRED, RECOMPUTED = range(4)

# Added to the positions of rows that a pass must not see: causality hides them.
_OUT_OF_SIGHT = 1 << 40

_NO_ROWS: Slots = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Counts:
    """The prompt's rows by where they came from since the previous completion."""

    num_wanted: int
    num_kept: int
    num_turned: int
    num_repaired: int
    num_recomputed: int


class PromptCache:
    """Rows for a prompt's tokens, in order of position, and after them what was generated.

    Every method that takes `check` may be left by what it raises and simply be called again: rows
    already computed stay, a half computed chunk is dropped.

    Attributes:
        num_rows_forwarded: rows computed so far, decoding included, healing excluded.
        num_rows_healed: rows recomputed by `heal`.
    """

    def __init__(self, decoder: Decoder, capacity: int, policy: str, chunk_tokens: int) -> None:
        """Start empty; no memory is taken before the first patch.

        Args:
            decoder: the model.
            capacity: rows at most.
            policy: how a change of the prompt is served, one of `config.POLICIES`.
            chunk_tokens: rows in one forward pass at most.
        """
        self.num_rows_forwarded = 0
        self.num_rows_healed = 0
        self._decoder = decoder
        self._capacity = capacity
        self._policy = policy
        self._chunk_tokens = chunk_tokens
        self._cache: KVCache | None = None
        self._token_ids: Ints = np.empty(0, dtype=np.int64)
        self._parts: Sequence[Ints] = [self._token_ids]
        self._logits: Tensor | None = None
        self._is_patched = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._token_ids)

    @property
    def num_bytes(self) -> int:
        """Memory that the cache holds."""
        return 0 if self._cache is None else self._cache.num_bytes

    @property
    def num_stale(self) -> int:
        """Rows of the prompt that `heal` would recompute."""
        if self._cache is None:
            return 0
        return max(0, min(self.num_tokens, self._cache.num_rows) - self._cache.num_fresh)

    def drop(self) -> None:
        """Give the memory back; the next `patch` prefills."""
        self._cache = self._logits = None
        self._is_patched = False

    # Following the prompt

    def want(self, parts: Sequence[Ints]) -> None:
        """Say what the prompt is now; `patch` makes the rows.

        Args:
            parts: tokens of each part of the layout, in order; rows are only reused within a part.
                What is generated continues the last one.
        """
        token_ids = np.concatenate(parts)
        if not np.array_equal(token_ids, self._token_ids):
            self._logits = None
        self._token_ids = token_ids
        bounds = pairwise(accumulate(map(len, parts), initial=0))
        self._parts = [token_ids[start:end] for start, end in bounds]
        self._is_patched = False
        if self._policy == "full" and self._cache is not None:
            self._cache.clear()
            self._logits = None

    def patch(self, check: Check) -> None:
        """Keep, turn and drop rows under the policy and compute the missing ones in order.

        Raises:
            OutOfMemory: no memory for the cache.
            ContextTooLong: more tokens than the capacity.
        """
        if self._is_patched:
            return
        missing = self._place()
        for start in range(0, len(missing), self._chunk_tokens):
            at = missing[start : start + self._chunk_tokens]
            # The last chunk takes the cursor's row along: a completion then finds its logits.
            is_final = start + self._chunk_tokens >= len(missing)
            again = self._last_row() if is_final and at[-1] != self.num_tokens - 1 else _NO_ROWS
            logits = self._extend(self._token_ids[at], at, check, again)
            self._logits = logits if is_final else None
        self._rows().by_position()  # for the next patch; a GPU is still at work
        self._is_patched = True

    def _place(self) -> Ints:
        """Keep, turn and drop rows; return the positions whose rows are missing.

        What a GPU takes longest for is launched first; it works while the rest is found out here.
        """
        cache = self._rows()
        order = cache.by_position()
        runs = self._runs(order)
        slots, positions = moved_rows(runs, order, cache.positions)
        if len(slots):
            self._logits = None
            cache.turn(slots, positions)
            cache.record("provenance")[slots] = TURNED
        dropped = order[rows_between([(run.source, run.length) for run in runs], len(order))]
        if (cache.positions[dropped] < self.num_tokens).any():
            self._logits = None
        cache.remove(dropped)
        missing = rows_between([(run.at, run.length) for run in runs], self.num_tokens)
        if len(missing):
            self._logits = None
        return missing

    def _runs(self, order: Slots) -> list[Run]:
        """Return which rows, counted in order of position, serve the prompt under the policy."""
        cache = self._rows()
        resident_ids = cache.token_ids.take(order)
        sides = cache.record("sides")
        if self._policy in ("full", "prefix"):
            length = common_prefix(resident_ids, self._token_ids)
            sides[order[:length]] = self._side_of(np.arange(length))
            return [Run(0, 0, length)] if length else []
        # Sides ascend with the positions. What lies beyond the last one is matched with nothing.
        starts = np.searchsorted(sides, np.arange(len(self._parts) + 1), sorter=order).tolist()
        resident = [resident_ids[start:end] for start, end in pairwise(starts)]
        return match_rows(resident, self._parts)

    def _side_of(self, positions: Ints) -> Ints:
        """Return the part that each position lies in; of what is generated, the last."""
        ends = np.cumsum([len(part) for part in self._parts[:-1]], dtype=np.int64)
        return np.searchsorted(ends, positions, side="right")

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

    def heal_now(self, check: Check) -> None:
        """Heal to the end as part of serving a completion (policy "heal")."""
        while self.num_stale:
            self._count_forwarded(self._recompute_lowest_stale(self.num_stale, check))

    # Reading

    def logits(self, check: Check) -> Tensor:
        """Return the (vocab_size,) float32 logits after the prompt."""
        if self._logits is None:
            last = self._last_row()
            self._logits = self._compute(last, check)
            self._count_forwarded(last)
        return self._logits

    def decode(self, token_id: int, check: Check) -> Tensor:
        """Append a generated token and return the logits after it.

        The row stays until a prompt does not want it: an accepted completion is not computed again.
        """
        position = self._rows().positions.max() + 1
        return self._extend(np.array([token_id]), np.array([position]), check)

    def drop_generated(self) -> None:
        """Drop what was generated after the prompt, to generate anew."""
        cache = self._rows()
        cache.remove(np.flatnonzero(cache.positions >= self.num_tokens))

    def score(self, token_ids: Sequence[int], check: Check) -> Tensor:
        """Return what the model predicts at each of these tokens, were they to come next.

        Args:
            token_ids: n tokens after the prompt, at least one.
            check: called between layers.

        Returns:
            (n, vocab_size) float32 logits; row i predicts `token_ids[i]`. The rows added for it
            are dropped again.

        Raises:
            ContextTooLong: the capacity has no room for n - 1 rows more.
        """
        first = self.logits(check)[None]
        if len(token_ids) == 1:
            return first
        cache = self._rows()
        num_fresh = cache.num_fresh
        generated = np.flatnonzero(cache.positions >= self.num_tokens)
        fed = np.array(token_ids[:-1], dtype=np.int64)
        slots = cache.append(fed, self.num_tokens + np.arange(len(fed)))
        cache.positions[generated] += _OUT_OF_SIGHT
        try:
            hidden = self._decoder.forward(cache, slots, check)
        finally:
            cache.remove(slots)
            cache.positions[generated] -= _OUT_OF_SIGHT
            cache.num_fresh = num_fresh
        return torch.cat([first, self._decoder.logits(hidden)])

    def take_counts(self) -> Counts:
        """Count the prompt's rows by provenance since the previous call, and start anew."""
        cache = self._rows()
        provenance = cache.record("provenance")
        of_prompt = provenance[cache.positions < self.num_tokens]
        provenance[:] = KEPT
        return Counts(len(of_prompt), *np.bincount(of_prompt, minlength=4).tolist())

    # Rows

    def _rows(self) -> KVCache:
        if self._cache is None:
            decoder = self._decoder
            self._cache = KVCache(decoder.config, self._capacity, decoder.dtype, decoder.device)
            self._cache.add_record("sides", np.int64, 0)
            self._cache.add_record("provenance", np.int8, RECOMPUTED)
        return self._cache

    def _last_row(self) -> Slots:
        return np.flatnonzero(self._rows().positions == self.num_tokens - 1)

    def _extend(
        self, token_ids: Ints, positions: Ints, check: Check, again: Slots = _NO_ROWS
    ) -> Tensor:
        """Append rows and compute them, and in the same pass rows that are there already.

        On any error the appended rows are taken back.

        Returns:
            (vocab_size,) logits after the last of all these rows.
        """
        cache = self._rows()
        slots = cache.append(token_ids, positions)
        cache.record("sides")[slots] = self._side_of(positions)
        computed = np.concatenate([slots, again])
        try:
            logits = self._compute(computed, check)
        except BaseException:
            cache.remove(slots)
            raise
        self._count_forwarded(computed)
        return logits

    def _compute(self, slots: Slots, check: Check) -> Tensor:
        cache = self._rows()
        logits = self._decoder.last_logits(cache, slots, check)
        cache.mark_computed(slots)
        return logits

    def _recompute_lowest_stale(self, max_rows: int, check: Check) -> Slots:
        """Recompute a chunk of stale rows in order of position; return their slots."""
        cache = self._rows()
        start = cache.num_fresh
        end = start + min(self._chunk_tokens, max_rows, self.num_stale)
        slots = cache.by_position()[start:end]
        self._logits = None  # of the last row, if it is healed on its way or sees what is
        logits = self._compute(slots, check)
        cache.record("provenance")[slots] = KEPT
        self._logits = logits if end == self.num_tokens else None
        return slots

    def _count_forwarded(self, slots: Slots) -> None:
        self._rows().record("provenance")[slots] = RECOMPUTED
        self.num_rows_forwarded += len(slots)
