"""The contenders, each with the document as it has it."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import numpy as np
from bench_cpu import Contender
from bench_edit_latency import SOURCE
from peers.steps import ACCEPT, TYPED, Step
from traces.cursor import lines_away

from keyturn.engine.engine import Engine
from keyturn.engine.loaded_model import Model
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.growing_window import PromptEncoder
from keyturn.engine.wire.config import CompletionParams
from keyturn.server.settings import Settings

OWN = "keyturn"
SUGGESTED_TOKENS = 16
# Between two steps, of which healing may use half.
REST_S = 2.0


class Ready(NamedTuple):
    """What one step took: tokens redone of how many, and ms to the first token."""

    num_prompt: int
    num_redone: int
    ready_ms: float
    request_ms: float


class Side(Protocol):
    """One contender with the document as it has it."""

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        ...

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        ...

    def rest(self) -> None:
        """Do what idle time is used for."""
        ...


class Own:
    """Keyturn, as a replay uses it: the cache is patched, then a completion is asked for."""

    def __init__(self, engine: Engine, model: str, policy: str, text: str, cursor: int) -> None:
        """Open the document and have its cache warm."""
        self._session = engine.open(OWN, text, path=SOURCE.stem, model=model, policy=policy)
        self._session.set_cursor(cursor)
        self._session.grow(go_on)

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        prompt = self._session.prompt
        before, start = prompt.num_rows_forwarded, time.perf_counter()
        if step.change is not None:
            self._session.edit([step.change])
            self._session.sync(go_on)
        patched_ms = (time.perf_counter() - start) * 1e3
        completion = self._session.complete(step.cursor, greedy(1), go_on)
        ready_ms = patched_ms + completion.ttft_ms
        num_redone = prompt.num_rows_forwarded - before
        return Ready(prompt.num_tokens, num_redone, ready_ms, ready_ms)

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        return self._session.complete(cursor, greedy(SUGGESTED_TOKENS), go_on).text

    def rest(self) -> None:
        """Have the whole window, and heal as the settings say for half of a pause."""
        self._session.grow(go_on)
        until = time.perf_counter() + REST_S / 2
        while time.perf_counter() < until and self._session.heal(64, go_on):
            pass


class Peer:
    """llama.cpp's server in one of its settings, in a process of its own."""

    def __init__(
        self, server: Contender, model: Model, layout: str, suffix_lines: int, text: str
    ) -> None:
        """Take a started server; the suffix ends so many lines below the cursor, 0: not."""
        self._server = server
        self._text = text
        self._suffix_lines = suffix_lines
        self._encoder = PromptEncoder(
            model.template,
            model.tokenizer,
            layout,
            model.window_tokens,
            model.chars_per_token,
            SOURCE.stem,
        )

    def step(self, step: Step) -> Ready:
        """Follow a step and have the first token of a completion."""
        if step.change is not None:
            start, end, inserted = step.change
            self._text = self._text[:start] + inserted + self._text[end:]
        prompt = self.prompt(step.cursor)
        told = self._server.run(prompt, 0)
        return Ready(len(prompt), told["num_redone"], told["ready_ms"], told["request_ms"])

    def suggestion(self, cursor: int) -> str:
        """Complete at the cursor."""
        return self._server.run(self.prompt(cursor), SUGGESTED_TOKENS - 1)["text"]

    def rest(self) -> None:
        """Do nothing, as it does."""

    def prompt(self, cursor: int) -> list[int]:
        """Return the tokens of the prompt: ours where order and suffix are ours."""
        end = len(self._text)
        if self._suffix_lines:
            below = lines_away(self._text, cursor, self._suffix_lines)
            end = end if below is None else min(end, below + 1)
        tokens = self._encoder.encode(self._text[:end], cursor, cursor).tokens
        return np.concatenate(list(tokens.values())).tolist()


def accepted(side: Side, cursor: int) -> Ready:
    """Accept what the side itself suggests, if it suggests anything, and take it back."""
    text = side.suggestion(cursor) or TYPED
    took = side.step(Step(ACCEPT, (cursor, cursor, text), cursor + len(text)))
    side.step(Step("", (cursor, cursor + len(text), ""), cursor))
    return took


def greedy(num_tokens: int) -> CompletionParams:
    """Return what asks for the likeliest tokens, so many at most, whatever they take."""
    return Settings(max_tokens=num_tokens, time_budget_ms=0.0).completion_params()
