"""What passes over some rows take on this machine: learnt from those that are run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Of what was learnt before, so much counts beside the newest pass: about the last twenty decide.
_KEPT = 0.95
# Rows of the decode steps that are timed, in order: the C library computes four at a time.
STEP_SIZES = (1, 2, 4, 8)
_MOST_ROWS = 64
# How fast figures follow what is observed: those of all steps, and those of one kind.
_FOLLOW, _FOLLOW_ONE = 0.1, 0.05
# Of the first row's time a further one costs this at least.
_LEAST_SHARE = 0.05


class PassCost:
    """Milliseconds of a pass as a fixed part and a part for each row, least squares over the past.

    Passes that took longer because the machine was busy count as they are: what comes next will
    find it busy too.
    """

    def __init__(self) -> None:
        """Start without knowing anything."""
        self._weight = self._rows = self._ms = self._rows_rows = self._rows_ms = 0.0

    def observe(self, num_rows: int, ms: float) -> None:
        """Note that a pass over so many rows took so long."""
        # By share of the pass: else the opening prefill would decide alone.
        share = 1 / max(ms, 1e-3)
        self._weight = self._weight * _KEPT + share
        self._rows = self._rows * _KEPT + share * num_rows
        self._ms = self._ms * _KEPT + share * ms
        self._rows_rows = self._rows_rows * _KEPT + share * num_rows * num_rows
        self._rows_ms = self._rows_ms * _KEPT + share * num_rows * ms

    def ms(self, num_rows: int) -> float | None:
        """Return what a pass over so many rows is expected to take; None before any has run."""
        if not self._weight:
            return None
        rows, ms = self._rows / self._weight, self._ms / self._weight
        spread = self._rows_rows / self._weight - rows * rows
        common = self._rows_ms / self._weight - rows * ms
        if spread <= 1e-6 * rows * rows:  # all passes had as many rows
            return ms * num_rows / rows
        per_row = max(common / spread, 0.0)
        fixed = ms - per_row * rows
        if fixed < 0:  # longer passes cost more a row: what they see has grown
            return ms * num_rows / rows
        return fixed + per_row * num_rows

    def rows_within(self, ms: float, most: int) -> int:
        """Return how many rows, `most` at most, a pass is expected to do in that time.

        Before any pass has run it is `most`.
        """
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            expected = self.ms(middle)
            if expected is None or expected <= ms:
                low = middle
            else:
                high = middle - 1
        return low


class StepCost:
    """Milliseconds of a decode step by its rows and the slots that they see, and of its logits.

    Measured once, then kept up to date by the steps that are run: a busy machine slows them all
    down, but not by the same factor.
    """

    def __init__(self) -> None:
        """Start with a guess: each further row costs a third of the first."""
        rows = np.arange(_MOST_ROWS + 1)
        self._fixed, self._per_slot = (rows + 2) / 3, np.zeros(len(rows))
        self._head = self._fixed / 5
        self._rows_alone = 1
        self._start_anew()

    def _start_anew(self) -> None:
        self._speed, self._drafting = 1.0, 1.0
        self._shape = np.ones(_MOST_ROWS + 1)

    def learn(
        self,
        layers: Mapping[tuple[int, int], float],
        head: Mapping[int, float],
        *,
        rows_alone: int = 1,
    ) -> None:
        """Take over what was measured.

        Args:
            layers: (rows, slots) to milliseconds of all layers, for `STEP_SIZES` and two numbers of
                slots.
            head: rows to milliseconds of their logits.
            rows_alone: a row that goes through some layers alone costs as much as so many.
        """
        few, many = sorted({slots for _, slots in layers})
        at_few, at_many = (
            _curve([layers[size, slots] for size in STEP_SIZES]) for slots in (few, many)
        )
        self._per_slot = np.maximum(at_many - at_few, 0) / (many - few)
        self._fixed = np.maximum(at_few - few * self._per_slot, at_few / 10)
        self._head = _curve([head[size] for size in STEP_SIZES])
        self._rows_alone = rows_alone
        self._start_anew()

    def ms(self, num_rows: int, num_slots: int) -> float:
        """Return what a whole step is expected to take."""
        ms = self._layers_ms(num_rows, num_slots) + float(self._head[num_rows])
        return ms * self._speed * float(self._shape[num_rows])

    def drafting_ms(
        self, num_rows: int, *, num_slots: int, share: float, kept: float, head_share: float
    ) -> float:
        """Return what it takes to draft with some rows, one by one, and to verify them together.

        Args:
            num_rows: the rows.
            num_slots: slots that they see.
            share: of the layers, those that draft.
            kept: of the layers, the first ones, that need not be run again.
            head_share: of the head, the tokens that may be drafted.
        """
        alone_ms = share * self._layers_ms(self._rows_alone, num_slots)
        drafting = num_rows * (alone_ms + head_share * float(self._head[1]))
        verifying = (1 - kept) * self._layers_ms(num_rows, num_slots) + float(self._head[num_rows])
        return (drafting + verifying) * self._speed * self._drafting

    def _layers_ms(self, num_rows: int, num_slots: int) -> float:
        return float(self._fixed[num_rows] + self._per_slot[num_rows] * num_slots)

    def observe(self, num_rows: int, num_slots: int, ms: float) -> None:
        """Note what a whole step took."""
        factor = _bounded(ms / self.ms(num_rows, num_slots))
        self._speed *= factor**_FOLLOW
        self._shape[num_rows] *= factor**_FOLLOW_ONE

    def observe_drafting(self, expected_ms: float, ms: float) -> None:
        """Note what drafting and verifying took, and what was expected of it."""
        factor = _bounded(ms / expected_ms)
        self._speed *= factor**_FOLLOW
        self._drafting *= factor**_FOLLOW_ONE


def _bounded(factor: float) -> float:
    """Return a factor within bounds: a step that waited says little about the next."""
    return min(2.0, max(0.5, factor))


def _curve(measured: list[float]) -> NDArray[np.float64]:
    """Return figures for 0 to `_MOST_ROWS` rows from those for `STEP_SIZES`.

    What a busy machine has made of them is bounded: a row more costs something, and at most as much
    as the first. Beyond four rows all that is begun of four is added, but for what less it costs.
    """
    sizes, one = np.array(STEP_SIZES), measured[0]
    least = one * (1 + _LEAST_SHARE * (sizes - 1))
    bounded = np.maximum.accumulate(np.clip(measured, least, one * sizes))
    up_to_four = np.interp(np.arange(1, 5), sizes, bounded)
    four, eight = bounded[-2:]
    fours = eight + (eight - four) * np.arange(_MOST_ROWS // 4 - 1)
    beyond = fours[:, None] - (four - up_to_four)
    return np.concatenate([up_to_four[:1], up_to_four, beyond.ravel()])
