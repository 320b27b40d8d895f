"""The cache of one document's prompt: patched to it, repaired before a completion, healed after."""

from __future__ import annotations

import numpy as np

from ..model.decoder import Check, Decoder
from ..model.kv_cache import Slots
from .dependencies import Dependencies
from .patched_cache import PatchedCache
from .placement import KEPT, REPAIRED
from .policy import Policy
from .repair import DISAGREEMENT, RepairLimit, choose, disagreement, owed, stale_rows, worth

# Of repair before a completion, at most.
_ROUNDS = 2
# Healing by what rows are worth ends when so much of it is left: over four edits of the evaluation
# sets it took a quarter of the CPU time of healing all, and left a KL of 0.00002 to 0.003; down to
# a twentieth it took as long as healing all, for hardly less. Where only so few rows are stale to
# the end, computing them all, in order, makes the whole cache exact.
_LEFT_UNHEALED, _SHORT_TAIL = 0.4, 256


class PromptCache(PatchedCache):
    """A patched cache whose stale rows are computed again: the ones that matter first, or all.

    Attributes:
        num_rows_healed: rows recomputed by `heal` and `heal_worthwhile`.
    """

    def __init__(self, decoder: Decoder, capacity: int, policy: Policy, chunk_tokens: int) -> None:
        """Start empty; arguments as for `PatchedCache`."""
        super().__init__(decoder, capacity, policy, chunk_tokens)
        self.num_rows_healed = 0
        self._is_of_other_weights = False  # rows are, and healing is not through with them

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

    # Repair, before a completion

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

    # Healing, after it

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
