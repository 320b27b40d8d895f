"""Decode steps: the rows of generated tokens, and the logits after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..model.decoder import Check
from ..model.heads import Summary
from .decoding_cache import DecodingCache
from .generate import Step


class Steps(Step, Protocol):
    """The decode steps of one completion and its further candidates."""

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token, on average, those of useless drafts included."""
        ...

    def branch_off(self, token_ids: Sequence[int]) -> Tensor:
        """Go on from other tokens after the prompt; the rows that they have already are kept.

        Args:
            token_ids: all that is taken, at least one; the last was never taken after the others.

        Returns:
            The (vocab_size,) float32 logits after the last.
        """
        ...

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that a call returned last."""
        ...

    def end(self) -> None:
        """Leave rows of taken tokens only; to be called once, whatever else was raised."""


class PlainSteps:
    """A row for each token by itself, through all layers or the first ones."""

    def __init__(self, prompt: DecodingCache, num_layers: int, check: Check) -> None:
        """Take nothing yet; see `depth.steps_of`."""
        self._prompt, self._check = prompt, check
        self._layers = range(num_layers)
        self._is_whole = num_layers == prompt.decoder.config.num_layers
        self._taken: list[int] = []  # tokens that have rows
        self._summary: Summary | None = None

    def __call__(self, token_id: int) -> Tensor:
        """Compute one more token, as `Step` says."""
        self._summary = None
        if self._is_whole:
            ((logits, self._summary),) = self._prompt.decode_several([token_id], self._check).read()
        else:
            logits = self._prompt.decode(token_id, self._check, self._layers)
        self._taken.append(token_id)
        return logits

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that were returned last."""
        return self._summary

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token."""
        return float(len(self._layers))

    def branch_off(self, token_ids: Sequence[int]) -> Tensor:
        """Go on from other tokens, as `Steps` says."""
        num_kept = common_length(self._taken, token_ids[:-1])
        self._prompt.drop_generated(num_kept)
        del self._taken[num_kept:]
        return [self(token_id) for token_id in token_ids[num_kept:]][-1]

    def end(self) -> None:
        """Drop rows that lack layers."""
        if not self._is_whole:
            self._prompt.drop_generated()


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two sequences have in common."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))
