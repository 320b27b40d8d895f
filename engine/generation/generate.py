"""The decode loop: tokens until the model, a stop string, a budget or the caller ends it."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..wire.config import CompletionParams
from ..wire.errors import ContextTooLong
from .sampler import ForcedPrefix, Sampler


@dataclass(frozen=True, slots=True)
class Generated:
    """What a decode loop produced; fields as in `config.Completion`."""

    text: str
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    stop_reason: str
    first_token_at: float


def generate(
    logits: Tensor,
    step: Callable[[int], Tensor],
    params: CompletionParams,
    *,
    end_ids: frozenset[int],
    token_bytes: list[bytes],
    forced: str,
    check: Callable[[], None],
    on_text: Callable[[str, float], None] | None,
) -> Generated:
    """Decode from the logits after the prompt.

    Args:
        logits: (vocab_size,) float32, of the first token.
        step: computes one more token and returns the (vocab_size,) logits after it; raises
            ContextTooLong when the cache is full.
        params: budgets, sampling and stop strings.
        end_ids: tokens that end the text.
        token_bytes: bytes of each token, b"" for special ones.
        forced: text that was cut off the prompt and must be generated again; not part of the
            result.
        check: called before every token; raises to cancel.
        on_text: receives each piece of the text as it becomes certain (never a part of a stop
            string), and the joint probability of the tokens that made it; a token that two pieces
            have a part of is counted with the first.

    Returns:
        The text and why it ended: "end", "stop", "length" or "time".
    """
    sampler = Sampler(params.temperature, params.top_p, params.seed)
    binding = ForcedPrefix(token_bytes, forced.encode("utf-8", "replace"))
    output = _Output(params.stop, on_text)
    token_ids: list[int] = []
    probabilities: list[float] = []
    num_forced = 0  # tokens that only wrote what was there: not of the caller's budget
    # Only decoding is on the clock: the wait for a cold place's first token cuts nothing short.
    budget_ms, first_token_at = params.time_budget_ms, 0.0
    while True:
        check()
        token_id, probability = sampler.pick(binding.restrict(logits))
        first_token_at = first_token_at or time.perf_counter()
        if token_id in end_ids:
            reason = "end"
            break
        token_ids.append(token_id)
        probabilities.append(probability)
        is_bound = bool(binding.remaining)
        piece = binding.consume(token_id)
        num_forced += is_bound and not piece
        if output.add(piece, probability):
            reason = "stop"
            break
        if len(token_ids) - num_forced >= params.max_tokens:
            reason = "length"
            break
        if budget_ms and (time.perf_counter() - first_token_at) * 1e3 >= budget_ms:
            reason = "time"
            break
        try:
            logits = step(token_id)
        except ContextTooLong:
            reason = "length"
            break
    return Generated(
        output.finish(), tuple(token_ids), tuple(probabilities), reason, first_token_at
    )


class _Output:
    """Bytes to text, cut at the first stop string, handed out as far as it is certain."""

    def __init__(self, stop: tuple[str, ...], on_text: Callable[[str, float], None] | None) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held_back = max((len(string) for string in self._stop), default=1) - 1
        self._on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._num_sent = 0
        # Where the text of each token begins of which none was sent, and the token's probability.
        self._unsent: deque[tuple[int, float]] = deque()

    def add(self, piece: bytes, probability: float) -> bool:
        """Append a token's bytes; return whether a stop string ended the text."""
        self._unsent.append((len(self._text), probability))
        self._text += self._decoder.decode(piece)
        found = [at for at in (self._text.find(string) for string in self._stop) if at >= 0]
        if found:
            self._text = self._text[: min(found)]
            return True
        self._send(len(self._text) - self._held_back)
        return False

    def finish(self) -> str:
        """Hand out the rest and return the whole text; an incomplete character is dropped."""
        self._send(len(self._text))
        return self._text

    def _send(self, end: int) -> None:
        if self._on_text is None or end <= self._num_sent:
            return
        joint = 1.0
        while self._unsent and self._unsent[0][0] < end:
            joint *= self._unsent.popleft()[1]
        self._on_text(self._text[self._num_sent : end], joint)
        self._num_sent = end
