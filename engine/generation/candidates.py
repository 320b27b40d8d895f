"""Further candidates: what the model would have written where it was least sure of what it wrote.

Each takes one other token and goes on from there, beside the first and in the same steps. It begins
as soon as it is sure that no later place is a likelier one to branch off: so those that are decoded
are the likeliest of all, and no others.
"""

from __future__ import annotations

import math
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..exits.stop import StopWatch
from ..wire.config import CompletionParams
from ..wire.errors import ContextTooLong
from .branches import Branch, Branches
from .steps import Steps, advance, stepped
from .writing import After, Generated, OnText, Pick, Writing

# Of the joint probability of a text to where it branches off, less is no candidate.
_LEAST = 0.02


class _Fork(NamedTuple):
    """A place to branch off: order by it is the likelier, then the earlier one first."""

    negated: float  # joint probability
    at: int
    other: Pick


class Forks:
    """Where others may branch off the first candidate."""

    def __init__(self, *, is_greedy: bool) -> None:
        """Know of none yet; `is_greedy`: the first takes the likeliest token each time."""
        self._is_greedy = is_greedy
        self._joint = 1.0
        self._picks: list[Pick] = []
        self._waiting: list[_Fork] = []

    def see(self, pick: Pick, other: Pick) -> None:
        """Take note of the first's next token, and of the likeliest one in its place."""
        likelihood = self._joint * other.probability
        if likelihood >= _LEAST:
            insort(self._waiting, _Fork(-likelihood, len(self._picks), other))
        self._picks.append(pick)
        self._joint *= pick.probability

    def take(self, most: int, *, is_over: bool) -> list[list[Pick]]:
        """Take out what is sure to be among the likeliest forks there will be; their tokens.

        Where m later forks would have to be likelier than one, m times its likelihood must be left
        of the joint probability; and once more, as a greedy pick is likelier than what it is
        preferred to.

        Args:
            most: so many at most.
            is_over: the first candidate has ended.
        """
        taken = 0
        while taken < min(most, len(self._waiting)):
            num_likelier = most - taken + self._is_greedy
            if not is_over and -self._waiting[taken].negated * num_likelier < self._joint:
                break
            taken += 1
        forks, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return [[*self._picks[: fork.at], fork.other] for fork in forks]


@dataclass(slots=True)
class _Other:
    """A further candidate on its way: its rows, and the token that is to get one next."""

    writing: Writing
    branch: Branch
    token_id: int


class Candidates:
    """A candidate and others on their way, together where there are several."""

    def __init__(
        self,
        writing: Callable[..., Writing],
        params: CompletionParams,
        steps: Steps,
        another: Callable[[Generated], Steps],
        open_branches: Callable[[], Branches],
    ) -> None:
        """Begin nothing yet.

        Args:
            writing: `write`, given all but its logits, its params and how it begins.
            params: those of the first; all together take no longer than it may.
            steps: computes the first as long as it is alone.
            another: makes steps that change nothing, for one behind the first, which has ended.
            open_branches: makes room for several.
        """
        self._writing, self._params, self._steps = writing, params, steps
        self._another, self._open_branches = another, open_branches
        self._forks = Forks(is_greedy=params.temperature == 0)
        self._num_others = params.num_candidates - 1
        self._first: int | Generated  # its next token, or the whole
        self._others: list[_Other] = []
        self._found: list[Generated] = []
        self._branches: Branches | None = None

    def decode(
        self, logits: Tensor, on_text: OnText | None, watch: StopWatch | None
    ) -> tuple[Generated, list[Generated]]:
        """Return the first and the others, the likelier first, none alike but for white space.

        Args:
            logits: (vocab_size,) float32, after the prompt.
            on_text: hears of the text of the first.
            watch: decides when to give up the first.
        """
        first = self._writing(
            logits, self._params, on_text=on_text, on_pick=self._forks.see, watch=watch
        )
        self._first = advance(first, None)
        self._started_at = time.perf_counter()
        try:
            while True:
                self._fork()
                if len(self._others) == 1 and isinstance(self._first, Generated):
                    self._found.append(self._finished(self._others.pop(), self._first))
                    continue
                if self._others:
                    self._step_together(first)
                    continue
                self._close()
                if isinstance(self._first, Generated):
                    return self._first, sorted(self._found, key=_joint, reverse=True)
                after = stepped(self._steps, self._first, self._steps.summary)
                self._first = advance(first, after)
        finally:
            self._close()

    def _fork(self) -> None:
        """Begin others as far as it is sure where."""
        is_over = isinstance(self._first, Generated)
        if not is_over and self._steps.layers is None:
            return
        while True:
            self._found = _distinct(self._found, self._first)
            num_free = self._num_others - len(self._found) - len(self._others)
            forks = self._forks.take(num_free, is_over=is_over)
            if not forks:
                return
            for begun in forks:
                self._begin_other(begun)

    def _begin_other(self, begun: list[Pick]) -> None:
        params, budget_ms = self._params, self._params.time_budget_ms
        if budget_ms:
            left_ms = budget_ms - (time.perf_counter() - self._started_at) * 1e3
            if left_ms <= 0:
                self._num_others = 0
                return
            params = replace(params, time_budget_ms=left_ms)
        writing = self._writing(None, params, on_text=None, begun=begun)
        token_id = advance(writing, None)
        if isinstance(token_id, Generated):
            self._found.append(token_id)
            return
        if self._branches is None:
            self._steps.pause()
            self._branches = self._open_branches()
        self._others.append(_Other(writing, self._branches.fork(len(begun) - 1), token_id))

    def _step_together(self, first: Writing) -> None:
        branches, others = self._branches, self._others
        assert branches is not None, "there are others"
        running = [(other.branch, other.token_id) for other in others]
        if not isinstance(self._first, Generated):
            running.append((branches.first, self._first))
        try:
            logits = branches.step(running)
        except ContextTooLong as error:
            last = others.pop()
            self._note(last, advance(last.writing, error))
            return
        self._others = []
        for other, after in zip(others, logits, strict=False):
            self._note(other, advance(other.writing, After(after)))
        if not isinstance(self._first, Generated):
            self._steps.take(self._first)
            self._first = advance(first, After(logits[-1]))

    def _finished(self, other: _Other, first: Generated) -> Generated:
        """Decode the last one by itself, with drafts."""
        branches = self._branches
        assert branches is not None, "it has rows there"
        steps = self._another(first)
        for token_id in branches.leave_alone(other.branch):
            steps.take(token_id)
        at: int | Generated = other.token_id
        try:
            while not isinstance(at, Generated):
                at = advance(other.writing, stepped(steps, at, steps.summary))
        finally:
            steps.end()
            self._close()
        return at

    def _note(self, other: _Other, after: int | Generated) -> None:
        """Keep a candidate going with its next token, or what came of it."""
        if isinstance(after, Generated):
            self._found.append(after)
        else:
            other.token_id = after
            self._others.append(other)

    def _close(self) -> None:
        if self._branches is not None:
            self._branches.close()
            self._branches = None


def _distinct(found: Sequence[Generated], first: int | Generated) -> list[Generated]:
    """Return candidates without those that say nothing, or what another says before them."""
    seen = {"", _normal(first.text) if isinstance(first, Generated) else ""}
    kept = []
    for each in found:
        if _normal(each.text) not in seen:
            seen.add(_normal(each.text))
            kept.append(each)
    return kept


def _normal(text: str) -> str:
    return " ".join(text.split())


def _joint(made: Generated) -> float:
    return math.prod(made.probabilities)
