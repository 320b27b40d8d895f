"""From logits to text: how a token is picked, what text it makes, and what ends that."""

from __future__ import annotations

import codecs
import math
import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..exits.stop import StopWatch
from ..model.heads import Summary
from ..tokens.tokenizer import TokenBytes
from ..wire.config import CompletionParams
from ..wire.errors import ContextTooLong, ModelLoadError

_WORD_CHARACTER = re.compile(r"\w")
_WORD, _WORD_OR_PART = re.compile(r"\w+"), re.compile("[\\w\ufffd]")


@dataclass(frozen=True, slots=True)
class Generated:
    """What a decode loop produced; fields as in `config.Completion`.

    Attributes:
        is_doubtful: the first line was likely to be wrong.
    """

    text: str
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    stop_reason: str
    first_token_at: float
    is_doubtful: bool = False


class Pick(NamedTuple):
    """A token, and the probability that the model gives it.

    Of all tokens that the logits allow, at temperature 1 and whatever top_p is: where text is
    forced, of those that agree with it, and so 1 if there is one.
    """

    token_id: int
    probability: float


class After(NamedTuple):
    """What a token's row gave.

    Attributes:
        logits: (vocab_size,) float32.
        known: what is known of them already.
    """

    logits: Tensor
    known: Summary | None = None


# Gives the tokens whose rows it wants, takes what each gave, None to give the completion up.
Writing = Generator[int, After | None, Generated]
# Hears of a piece of text, and of the joint probability of the tokens that made it.
OnText = Callable[[str, float], None]
# Hears of a token that is taken, and of the likeliest one in its place.
OnPick = Callable[[Pick, Pick], None]


def write(
    logits: Tensor | None,
    params: CompletionParams,
    *,
    end_ids: frozenset[int],
    token_bytes: TokenBytes,
    forced: str,
    check: Callable[[], None],
    on_text: OnText | None,
    begun: Sequence[Pick] = (),
    on_pick: OnPick | None = None,
    watch: StopWatch | None = None,
) -> Writing:
    """Decode from the logits after the prompt until model, stop string, budget or caller ends it.

    Args:
        logits: (vocab_size,) float32, of the first token; None where `begun` has it.
        params: budgets, sampling and stop strings.
        end_ids: tokens that end the text.
        token_bytes: bytes of each token, b"" for special ones.
        forced: text that was cut off the prompt and must be generated again; not part of the
            result.
        check: called before every token; raises to cancel.
        on_text: receives each piece of the text as it becomes certain (never a part of a stop
            string), and the joint probability of the tokens that made it; a token that two pieces
            have a part of is counted with the first.
        begun: tokens that are taken already; all but the last have rows.
        on_pick: hears of each token, whatever ends the text there.
        watch: decides when to give up, if there is a gate; otherwise it only warns.

    Yields:
        Each token that another may follow. ContextTooLong, thrown in, ends the text before it.

    Returns:
        The text and why it ended: "end", "stop", "length", "time", "doubt" or, when `watch` or
        whoever computes gave it up, "low_confidence".
    """
    sampler = Sampler(params.temperature, params.top_p, params.seed)
    binding = ForcedPrefix(token_bytes, forced.encode("utf-8", "replace"))
    output = _Output(params.stop, on_text, holds_words=params.min_probability > 0)
    token_ids: list[int] = []
    probabilities: list[float] = []
    num_forced = 0  # tokens that only wrote what was there: not of the caller's budget
    joint = 1.0
    # Only decoding is on the clock: the wait for a cold place's first token cuts nothing short.
    budget_ms, first_token_at = params.time_budget_ms, 0.0
    taken = deque(begun)
    known: Summary | None = None  # of `logits`
    while True:
        check()
        allowed = None
        if taken:
            token_id, probability = taken.popleft()
        else:
            assert logits is not None, "of the first token, or of one that was given out"
            allowed = binding.restrict(logits)
            known = known if allowed is logits else None
            token_id, probability = sampler.pick(allowed, known)
            if on_pick is not None:
                on_pick(Pick(token_id, probability), runner_up(allowed, token_id))
        first_token_at = first_token_at or time.perf_counter()
        if token_id in end_ids:
            reason = "end"
            break
        is_bound = bool(binding.remaining)
        piece = binding.consume(token_id)
        num_forced += is_bound and not piece
        joint *= probability if piece else 1.0
        if watch is not None and piece and allowed is not None:
            watch.see(piece, probability, allowed, known.entropy if known else None)
        # The gate says what may be shown, the stop what is worth computing: what has passed the
        # gate until then is shown.
        least = params.min_probability
        if least and output.is_in_first_word(piece):
            least = max(least, params.min_first_word)
        doubt = _doubt(joint, least, watch)
        if doubt:
            output.drop_word_before(piece)
            reason = doubt
            break
        token_ids.append(token_id)
        probabilities.append(probability)
        if output.add(piece, probability):
            reason = "stop"
            break
        if len(token_ids) - num_forced >= params.max_tokens:
            reason = "length"
            break
        if budget_ms and (time.perf_counter() - first_token_at) * 1e3 >= budget_ms:
            reason = "time"
            break
        if taken:
            continue  # its row is there
        try:
            after = yield token_id
        except ContextTooLong:
            reason = "length"
            break
        if after is None:
            reason = "low_confidence"
            break
        logits, known = after
    return Generated(
        output.finish(),
        tuple(token_ids),
        tuple(probabilities),
        reason,
        first_token_at,
        watch is not None and watch.is_doubtful,
    )


def _doubt(joint: float, least: float, watch: StopWatch | None) -> str:
    """Return the reason to end before a token, "" if there is none."""
    if joint < least:
        return "doubt"
    return "low_confidence" if least and watch is not None and watch.is_doubtful else ""


def runner_up(logits: Tensor, token_id: int) -> Pick:
    """Return the likeliest token of (vocab_size,) logits besides one."""
    (first, second), (at, other) = (each.tolist() for each in logits.topk(2))
    log_probability = (second if at == token_id else first) - float(logits.logsumexp(-1))
    return Pick(other if at == token_id else at, _probability(log_probability))


def _goes_on_with_word(piece: bytes) -> bool:
    """Return whether bytes begin with a character of a word, or with a part of some character."""
    return bool(_WORD_OR_PART.match(piece.decode("utf-8", "replace")))


class _Output:
    """Bytes to text, cut at the first stop string, handed out as far as it is certain."""

    def __init__(
        self,
        stop: tuple[str, ...],
        on_text: OnText | None,
        *,
        holds_words: bool,
    ) -> None:
        self._holds_words = holds_words  # until it is known how they go on
        self._is_over = False
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

    def is_in_first_word(self, piece: bytes) -> bool:
        """Return whether `piece` begins the text, white space aside, or goes on with its word."""
        word = self._text.lstrip()
        if not word or not _WORD.fullmatch(word):
            return not word
        return _goes_on_with_word(piece)

    def drop_word_before(self, piece: bytes) -> None:
        """Drop the word at the end that `piece`, which is not taken, would have gone on with."""
        if _goes_on_with_word(piece):
            self._text = self._text[: self._word_start(len(self._text))]

    def _word_start(self, end: int) -> int:
        while end > 0 and _WORD_CHARACTER.match(self._text[end - 1]):
            end -= 1
        return end

    def finish(self) -> str:
        """Hand out the rest and return the whole text; an incomplete character is dropped."""
        self._is_over = True
        self._send(len(self._text))
        return self._text

    def _send(self, end: int) -> None:
        if self._holds_words and not self._is_over:
            end = self._word_start(max(end, 0))
        if self._on_text is None or end <= self._num_sent:
            return
        joint = 1.0
        while self._unsent and self._unsent[0][0] < end:
            joint *= self._unsent.popleft()[1]
        self._on_text(self._text[self._num_sent : end], joint)
        self._num_sent = end


class Sampler:
    """Picks one token at a time.

    Greedy at temperature 0; otherwise nucleus sampling (Holtzman et al., arXiv 1904.09751, §3.1)
    from a generator of its own, so that a seed gives the same tokens whatever else runs.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        """Start a sequence of draws; temperature and top_p were checked with the settings."""
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator().manual_seed(seed)

    def pick(self, logits: Tensor, known: Summary | None = None) -> Pick:
        """Pick a token of (vocab_size,) float32 logits, of which something may be known already.

        Raises:
            ModelLoadError: they are not numbers.
        """
        if known is not None:
            best, largest, log_sum, _ = known
        else:
            # One copy for all three: a GPU is waited for once.
            found = torch.stack(
                [logits.argmax().double(), logits.max().double(), logits.logsumexp(-1).double()]
            )
            best, largest, log_sum = found.tolist()
        if math.isnan(largest):
            raise ModelLoadError(
                "the model computes no numbers: its weights are damaged; fetch the model again"
            )
        if self._temperature == 0:
            return Pick(int(best), _probability(largest - log_sum))
        # In double and from the largest down: no temperature above 0 is too small to divide by.
        below = logits.cpu().double() - largest
        shares = (below / self._temperature).softmax(-1)
        ranked, token_ids = shares.sort(descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        ranked[before >= self._top_p] = 0
        drawn = int(token_ids[torch.multinomial(ranked, 1, generator=self._generator)])
        return Pick(drawn, _probability(below[drawn].item() + largest - log_sum))


def _probability(log_probability: float) -> float:
    return min(1.0, math.exp(log_probability))  # a sum rounded down would give more than 1


class ForcedPrefix:
    """Binds the first tokens to text that is already there (token healing).

    The prompt was cut back to a token boundary; what was cut must be generated again, by any
    tokens whose bytes agree with it.
    """

    def __init__(self, token_bytes: TokenBytes, forced: bytes) -> None:
        """Bind the next tokens to `forced`.

        Args:
            token_bytes: bytes of each token of the vocabulary, b"" for special ones.
            forced: what the generated bytes must start with.
        """
        self._token_bytes = token_bytes
        self._sorted = token_bytes.ordered if forced else []
        self.remaining = forced

    def restrict(self, logits: Tensor) -> Tensor:
        """Return logits with -inf for every token that disagrees with what remains."""
        if not self.remaining:
            return logits
        allowed = [at for piece, at in self._starting_with(self.remaining)]
        for length in range(1, len(self.remaining)):
            piece = self.remaining[:length]
            place = bisect_left(self._sorted, (piece, -1))
            while place < len(self._sorted) and self._sorted[place][0] == piece:
                allowed.append(self._sorted[place][1])
                place += 1
        if not allowed:  # a vocabulary that cannot write it: better unbound than at random
            self.remaining = b""
            return logits
        bound = torch.full_like(logits, float("-inf"))
        bound[allowed] = logits[allowed]
        return bound

    def _starting_with(self, start: bytes) -> list[tuple[bytes, int]]:
        low = bisect_left(self._sorted, (start, -1))
        high = low
        while high < len(self._sorted) and self._sorted[high][0].startswith(start):
            high += 1
        return self._sorted[low:high]

    def consume(self, token_id: int) -> bytes:
        """Take note of a picked token; return those of its bytes that go beyond what was forced."""
        piece = self._token_bytes[token_id]
        beyond = piece[len(self.remaining) :]
        self.remaining = self.remaining[len(piece) :]
        return beyond
