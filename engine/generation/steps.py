"""Decode steps: the rows of generated tokens, and the logits after them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..model.decoder import Check
from ..model.heads import Summary
from .decoding_cache import DecodingCache
from .generate import Step


class Steps(Step, Protocol):
    """The decode steps of one completion."""

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token, on average, those of useless drafts included."""
        ...

    @property
    def layers(self) -> range | None:
        """Layers that every row goes through; None: that differs."""
        ...

    def pause(self) -> None:
        """Leave rows of taken tokens only, and whole, for others to go on behind them."""
        ...

    def take(self, token_id: int) -> None:
        """Take note of a token whose row others have computed."""
        ...

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that a call returned last."""
        ...

    def end(self) -> None:
        """Leave rows of taken tokens only; to be called once, whatever else was raised."""


class PlainSteps:
    """A row for each token by itself, through all layers or the first ones.

    Attributes:
        layers: those.
    """

    def __init__(self, prompt: DecodingCache, num_layers: int, check: Check) -> None:
        """Take nothing yet; see `depth.steps_of`."""
        self._prompt, self._check = prompt, check
        self.layers = range(num_layers)
        self._is_whole = num_layers == prompt.decoder.config.num_layers
        self._summary: Summary | None = None

    def __call__(self, token_id: int) -> Tensor:
        """Compute one more token, as `Step` says."""
        if self._is_whole:
            ((logits, self._summary),) = self._prompt.decode_several([token_id], self._check).read()
            return logits
        return self._prompt.decode(token_id, self._check, self.layers)

    def summary(self) -> Summary | None:
        """Return what is known already of the logits that were returned last."""
        return self._summary

    @property
    def mean_layers(self) -> float:
        """Layers that were run for a token."""
        return float(len(self.layers))

    def pause(self) -> None:
        """Leave rows as they are: all are taken."""

    def take(self, token_id: int) -> None:
        """Do nothing with what others have computed."""

    def end(self) -> None:
        """Drop rows that lack layers."""
        if not self._is_whole:
            self._prompt.drop_generated()
