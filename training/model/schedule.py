"""How far a run is, by the clock or by steps, and the learning rate at that place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .processes import Processes


def learning_rate(place: float, warm: float, level: float, last: float = 0.01) -> float:
    """Return the share of the peak rate at a place of the schedule.

    Args:
        place: in 0..1.
        warm: where the warm-up ends.
        level: where the linear decay begins.
        last: share at the end.
    """
    if place < warm:
        return place / warm * (1 - 0.02) + 0.02
    if place < level:
        return 1.0
    return max(last, 1 - (1 - last) * (place - level) / (1 - level))


@dataclass
class Span:
    """The part of the schedule that a run covers.

    Attributes:
        begin: place of the schedule at the start, in 0..1.
        finish: at the end.
        done: share of the part that earlier calls of the run have covered.
        steps: length in steps, those calls' included; None goes by time.
        minutes: length in minutes, without the first step of each call, which compiles.
        deadline_file: holds the unix time of the end instead, read again and again.
    """

    begin: float
    finish: float
    done: float = 0.0
    steps: int | None = None
    minutes: float = 0.0
    deadline_file: Path | None = None

    def place(self, progress: float) -> float:
        """Return the place of the schedule at a progress through the part, 0..1."""
        return self.begin + (self.finish - self.begin) * progress


class Clock:
    """Progress through a part of the schedule, the same in all processes.

    Attributes:
        progress: from 0 to 1.
        elapsed_s: seconds since the start, as of the last time that it was asked.
    """

    EVERY = 10  # steps between two looks at the time

    def __init__(self, span: Span, processes: Processes, steps: int) -> None:
        """Start now, after that many steps of the run."""
        self.start_s = time.time()
        self.progress, self.elapsed_s = span.done, 0.0
        self._span, self._processes, self._steps = span, processes, steps
        self._own_steps, self._rate = 0, 0.0
        self._count()

    def tick(self) -> bool:
        """Advance by one step; return whether the time was looked at."""
        self._steps += 1
        self._own_steps += 1
        looks = self._own_steps % self.EVERY == 0 or self._own_steps <= 2
        if looks:
            self._processes.synchronise()
            elapsed_s = time.time() - self.start_s
            by_time = elapsed_s / max(1.0, self._end_s() - self.start_s)
            self.elapsed_s, by_time = self._processes.first([elapsed_s, by_time])
            done = self._span.done
            self._rate = (1 - done) * by_time / self._own_steps
            self.progress = done + (1 - done) * by_time
        else:
            self.progress = min(self.progress + self._rate, 0.9999)
        self._count()
        return looks

    def _count(self) -> None:
        if self._span.steps is not None:
            self.progress = self._steps / self._span.steps

    def _end_s(self) -> float:
        """Return the unix time at which the run ends."""
        file = self._span.deadline_file
        if file and file.exists():
            return float(file.read_text())
        return self.start_s + 60 * self._span.minutes * (1 - self._span.done)
