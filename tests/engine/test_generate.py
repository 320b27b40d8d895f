"""The decode loop and the sampler, on a scripted model."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.generation.steps import generate
from keyturn.engine.generation.writing import ForcedPrefix, Sampler, write
from keyturn.engine.tokens.tokenizer import TokenBytes
from keyturn.engine.wire.config import CompletionParams
from keyturn.engine.wire.errors import Cancelled, ContextTooLong, ModelLoadError

PIECES = TokenBytes(
    [b"", b"a", b"b", b"\n", b"  ", b" ", b"    ", b"ab", b"\xc3", b"\xa9", b" x", b"\n    "]
)
END = 0


def logits_for(*token_ids):
    """Logits that prefer these tokens in this order."""
    logits = torch.zeros(len(PIECES))
    for rank, token_id in enumerate(token_ids):
        logits[token_id] = 10.0 - rank
    return logits


def run(script, *, forced="", check=lambda: None, on_text=None, step=None, **changes):
    params = {
        "max_tokens": 20,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "stop": (),
        "time_budget_ms": 0.0,
        **changes,
    }
    rest = iter(script[1:])
    writing = write(
        script[0],
        CompletionParams(**params),
        end_ids=frozenset({END}),
        token_bytes=PIECES,
        forced=forced,
        check=check,
        on_text=on_text,
    )
    return generate(writing, step or (lambda token_id: next(rest)))


def scripted(*token_ids):
    return [logits_for(token_id) for token_id in token_ids]


def test_end_token_ends_and_is_not_part_of_the_result():
    result = run(scripted(1, 2, END))
    assert (result.text, result.token_ids, result.stop_reason) == ("ab", (1, 2), "end")


def test_stop_string_across_tokens_cuts_the_text():
    result = run(scripted(1, 2, 1, END), stop=("ba",))
    assert (result.text, result.stop_reason) == ("a", "stop")


def test_token_budget_ends_with_reason_length():
    result = run(scripted(1, 1, 1, 1), max_tokens=3)
    assert (result.text, result.stop_reason) == ("aaa", "length")


def test_full_cache_ends_with_reason_length():
    def step(token_id):
        raise ContextTooLong("full")

    assert run(scripted(1), step=step).stop_reason == "length"


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, monkeypatch):
        self.ms = 1e6
        monkeypatch.setattr(time, "perf_counter", lambda: self.ms / 1e3)

    def pass_(self, ms):
        self.ms += ms


def test_time_budget_ends_with_what_there_is(monkeypatch):
    clock = Clock(monkeypatch)

    def step(token_id):
        clock.pass_(10)
        return logits_for(1)

    result = run(scripted(1), step=step, time_budget_ms=25.0)
    assert (result.text, result.stop_reason) == ("aaaa", "time")
    assert run(scripted(1), step=step, time_budget_ms=0.0).stop_reason == "length"


def test_time_before_the_first_token_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    result = run(scripted(1, 2, 1, END), check=lambda: clock.pass_(10), time_budget_ms=35.0)
    assert (result.text, result.stop_reason) == ("aba", "end")
    late = iter([10_000])
    check = lambda: clock.pass_(next(late, 10))  # noqa: E731
    result = run(scripted(1, 2, 1, END), check=check, time_budget_ms=35.0)
    assert (result.text, result.stop_reason) == ("aba", "end")


def test_cancellation_is_seen_before_every_token():
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled("by the user")

    with pytest.raises(Cancelled):
        run(scripted(1, 1, 1, 1, 1), check=check)
    assert len(calls) == 3


def test_streamed_pieces_add_up_and_never_show_a_stop_string():
    pieces = []
    result = run(
        scripted(1, 2, 3, 1, END), stop=("\na",), on_text=lambda text, _: pieces.append(text)
    )
    assert result.text == "ab" == "".join(pieces)


def test_character_split_over_tokens_is_streamed_whole():
    pieces = []
    result = run(scripted(8, 9, 8, END), on_text=lambda text, _: pieces.append(text))
    assert result.text == "é" == "".join(pieces)


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ([(2, 11), (10, END), (END,)], " x"),  # "\n    " covers what was forced, and goes on
        ([(1, 3), (1, 6), (1,), (END,)], "a"),  # "\n" then "    ", then free
    ],
)
def test_forced_text_is_generated_again_and_left_out(choices, text):
    result = run([logits_for(*choice) for choice in choices], forced="\n    ")
    assert result.text == text


def test_token_may_go_beyond_the_forced_text():
    result = run([logits_for(7), logits_for(END)], forced="a")
    assert (result.text, result.token_ids) == ("b", (7,))


def test_end_token_is_not_allowed_while_text_is_forced():
    result = run([logits_for(END, 1), logits_for(END)], forced="a")
    assert (result.text, result.token_ids) == ("", (1,))


@given(st.text(alphabet="ab \n", min_size=1, max_size=8))
def test_forced_prefix_allows_exactly_the_tokens_that_agree(forced):
    binding = ForcedPrefix(PIECES, forced.encode())
    allowed = {
        at for at, value in enumerate(binding.restrict(torch.zeros(len(PIECES)))) if value == 0
    }
    expected = {
        at
        for at, piece in enumerate(PIECES)
        if piece and (piece.startswith(forced.encode()) or forced.encode().startswith(piece))
    }
    assert allowed == expected


def test_same_seed_gives_the_same_tokens_and_another_seed_others():
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0))

    def draw(seed):
        sampler = Sampler(1.0, 0.95, seed)
        return [sampler.pick(logits).token_id for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(1.0, 0.75, 0)
    assert {sampler.pick(logits).token_id for _ in range(200)} == {0, 1}


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.7, 0.3]).log()
    sampler = Sampler(1.0, 1.0, 0)
    share = sum(sampler.pick(logits).token_id == 0 for _ in range(4000)) / 4000
    assert abs(share - 0.7) < 0.03


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_temperature_close_to_zero_is_greedy(temperature):
    assert Sampler(temperature, 1.0, 0).pick(logits_for(3, 1)).token_id == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_text_that_the_vocabulary_cannot_write_does_not_bind(temperature):
    result = run(scripted(1, END), forced="\u2028", temperature=temperature, top_p=0.5)
    assert (result.text, result.stop_reason) == ("a", "end")


def test_forced_tokens_are_not_of_the_token_budget():
    result = run(scripted(11, 4, 1, 2), forced="\n      ", max_tokens=1)
    assert (result.text, result.token_ids, result.stop_reason) == ("a", (11, 4, 1), "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(temperature):
    with pytest.raises(ModelLoadError, match="damaged; fetch the model again"):
        run([torch.full((len(PIECES),), float("nan"))], temperature=temperature)


WORDS = TokenBytes([b"", b"", b"foo", b"bar", b" = ", b"1", b"(", b"\n", b"\xc3", b"\xa9"])


def doubtful(script, min_probability, on_text=None, watch=None, min_first_word=0.0):
    """Decode tokens that have such probabilities; every other token shares the rest."""

    def logits(token_id, probability):
        others = (1 - probability) / (len(WORDS) - 1)
        return torch.tensor(
            [probability if at == token_id else others for at in range(len(WORDS))]
        ).log()

    steps = [logits(*each) for each in script]
    rest = iter(steps[1:])
    params = CompletionParams(20, 0.0, 1.0, 0, (), 0.0, min_probability, min_first_word)
    writing = write(
        steps[0],
        params,
        end_ids=frozenset({1}),
        token_bytes=WORDS,
        forced="",
        check=lambda: None,
        on_text=on_text,
        watch=watch,
    )
    return generate(writing, lambda token_id: next(rest))


def test_doubt_ends_before_the_token_that_brings_it_and_leaves_no_part_of_a_word():
    sure = [(2, 0.9), (4, 0.9), (2, 0.9)]
    told = []
    result = doubtful([*sure, (3, 0.5), (5, 0.9)], 0.5, lambda text, p: told.append(text))
    # "bar" would have gone on with the word that "foo" began.
    assert (result.text, result.stop_reason) == ("foo = ", "doubt")
    assert "".join(told) == result.text
    result = doubtful([*sure, (6, 0.5)], 0.5)
    assert (result.text, result.stop_reason) == ("foo = foo", "doubt")
    result = doubtful([*sure, (3, 0.9), (1, 0.3)], 0.5)
    assert (result.text, result.stop_reason) == ("foo = foobar", "end")


def test_first_token_in_doubt_leaves_nothing():
    result = doubtful([(2, 0.4)], 0.5)
    assert (result.text, result.token_ids, result.stop_reason) == ("", (), "doubt")


@pytest.mark.parametrize(
    "script, text, reason",
    [
        ([(2, 0.7), (4, 0.6), (1, 0.9)], "foo = ", "end"),  # .42: enough behind the first word
        ([(2, 0.7), (3, 0.7), (1, 0.9)], "", "doubt"),  # "foobar" is one word, of .49
        ([(2, 0.9), (3, 0.7), (4, 0.6), (5, 0.5)], "foobar = ", "doubt"),
        ([(7, 0.7), (2, 0.7)], "\n", "doubt"),  # white space comes before a word
        ([(6, 0.5)], "", "doubt"),
        ([(6, 0.7), (2, 0.7), (1, 0.9)], "(foo", "end"),  # what is no word is first by itself
        ([(2, 0.9), (7, 0.9), (3, 0.5), (1, 0.9)], "foo\nbar", "end"),  # another word
        ([(2, 0.9), (8, 0.8), (9, 0.8)], "", "doubt"),  # half a letter goes on with a word
    ],
)
def test_first_word_has_to_be_surer_than_what_follows(script, text, reason):
    told = []
    result = doubtful(script, 0.3, lambda text, p: told.append(text), min_first_word=0.6)
    assert (result.text, result.stop_reason) == (text, reason)
    assert "".join(told) == text


def test_what_is_given_up_ends_with_what_there_is():
    after = iter([logits_for(2), None])
    result = run(scripted(1), step=lambda token_id: next(after))
    assert (result.text, result.stop_reason) == ("ab", "low_confidence")
