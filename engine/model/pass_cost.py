"""What a forward pass over some rows takes on this machine: learnt from the passes that are run."""

from __future__ import annotations

# Of what was learnt before, so much counts beside the newest pass: about the last twenty decide.
_KEPT = 0.95


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
