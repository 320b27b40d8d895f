"""Several candidates in the same steps are what each would be alone, and so is the cache after."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.engine import Engine
from keyturn.engine.files.weights import load_model
from keyturn.engine.generation.branches import Branches
from keyturn.engine.generation.candidates import Candidates, Forks
from keyturn.engine.generation.decoding_cache import DecodingCache
from keyturn.engine.generation.steps import PlainSteps, generate
from keyturn.engine.generation.writing import Pick, write
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.tokens.tokenizer import TokenBytes
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.kernels import dispatch

from ..tolerance import assert_close

NUM_TOKENS, VOCAB = 24, 400
TOKEN_BYTES = TokenBytes([bytes([97 + at % 26]) for at in range(VOCAB)])


def check():
    pass


@pytest.fixture(
    scope="module", params=[("C", None), ("launches", None), ("C", 6), ("launches", 6)], ids=str
)
def decoder(request, tiny_model):
    """The C step, or launches one by one; a window that hides the prompt's beginning, or none."""
    where, window = request.param
    kernels = dispatch.choose(torch.device("cpu"))
    if where == "C" and kernels.whole_step is None:
        pytest.skip("no C library")
    files = load_model(tiny_model, torch.float32)
    config = replace(files.config, sliding_windows=(window, None) if window else ())
    with pytest.MonkeyPatch.context() as patch:
        if where == "launches":
            patch.setattr(dispatch, "choose", lambda device: replace(kernels, whole_step=None))
        decoder = Decoder(config, files.tensors)
    assert decoder.is_in_c == (where == "C")
    return decoder


def opened(decoder, token_ids=range(5, 5 + NUM_TOKENS), capacity=200):
    prompt = DecodingCache(decoder, capacity, find_policy("turn"), 64)
    prompt.set_prompt({("prefix",): np.array(token_ids)})
    prompt.patch(check)
    return prompt


def assert_same_rows(found, wanted):
    """The same tokens in the same places, with the same keys and values, and as fresh."""
    kept = []
    for prompt in (found, wanted):
        cache = prompt.rows
        order = np.argsort(cache.positions)
        known = (cache.token_ids[order].tolist(), cache.positions[order].tolist(), cache.num_fresh)
        kept.append((known, [part[:, :, order] for part in cache.storage]))
    assert kept[0][0] == kept[1][0]
    for ours, theirs in zip(kept[0][1], kept[1][1], strict=True):
        assert_close(ours, theirs, torch.float32)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_branches_are_computed_as_if_each_were_alone(decoder, data):
    token_ids = st.integers(0, VOCAB - 1)
    prompt = opened(decoder)
    first = data.draw(st.lists(token_ids, max_size=4))
    for token_id in first:
        prompt.decode(token_id, check)
    branches = Branches(prompt, check, range(2))
    ways, logits = [(branches.first, first)], {}
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(first)))
            ways.append((branches.fork(at), first[:at]))
        going = data.draw(st.lists(st.sampled_from(range(len(ways))), min_size=1, unique=True))
        fed = [data.draw(token_ids) for _ in going]
        after = branches.step([(ways[at][0], each) for at, each in zip(going, fed, strict=True)])
        for at, each, found in zip(going, fed, after, strict=True):
            ways[at][1].append(each)
            logits[at] = found
    branches.close()
    for at, found in logits.items():
        alone = opened(decoder)
        assert_close(found, [alone.decode(each, check) for each in ways[at][1]][-1], torch.float32)
    alone = opened(decoder)
    for token_id in first:
        alone.decode(token_id, check)
    assert_same_rows(prompt, alone)
    num_forwarded = prompt.num_rows_forwarded
    prompt.logits(check)
    assert prompt.num_rows_forwarded == num_forwarded, "the logits after the prompt are kept"


@given(
    st.lists(st.tuples(st.floats(0.3, 1), st.floats(0, 1)), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_forks_are_the_likeliest_of_all_and_begin_before_the_end(steps, most):
    picks = [(p, min(p, 1 - p) * share) for p, share in steps]
    forks, taken, joint, likelihoods = Forks(is_greedy=True), [], 1.0, []
    for at, (p, other) in enumerate(picks):
        forks.see(Pick(at, p), Pick(100 + at, other))
        likelihoods.append(joint * other)
        joint *= p
        taken += forks.take(most - len(taken), is_over=False)
    taken += forks.take(most - len(taken), is_over=True)
    best = sorted(range(len(picks)), key=lambda at: -likelihoods[at])[:most]
    wanted = {at for at in best if likelihoods[at] >= 0.02}
    found = {begun[-1].token_id - 100 for begun in taken}
    assert len(taken) == len(found) == len(wanted)
    assert sum(likelihoods[at] for at in found) == pytest.approx(
        sum(likelihoods[at] for at in wanted)
    )
    assert all(
        begun[:-1] == [Pick(at, p) for at, (p, _) in enumerate(picks)][: len(begun) - 1]
        for begun in taken
    )


def test_a_fork_is_taken_where_no_later_one_can_be_likelier():
    forks = Forks(is_greedy=True)
    forks.see(Pick(1, 0.5), Pick(2, 0.3))
    # Of 0.5 at most 0.25 may go another way later.
    assert forks.take(1, is_over=False) == [[Pick(2, 0.3)]]
    forks.see(Pick(3, 0.9), Pick(4, 0.08))
    assert forks.take(1, is_over=False) == []
    assert forks.take(1, is_over=True) == [[Pick(1, 0.5), Pick(4, 0.08)]]


def reference(decoder, writing, params, token_ids):
    """Decode the first candidate, then others from the likeliest forks, each in a fresh cache."""
    picks, runners_up = [], []
    prompt = opened(decoder, token_ids)

    def see(pick, other):
        picks.append(pick)
        runners_up.append(other)

    num_layers = decoder.config.num_layers
    steps = PlainSteps(prompt, num_layers, check)
    first = generate(writing(prompt.logits(check), params, on_text=None, on_pick=see), steps)
    joint, forks = 1.0, []
    for at, (pick, other) in enumerate(zip(picks, runners_up, strict=True)):
        forks.append((joint * other.probability, at, other))
        joint *= pick.probability
    others, texts = [], {"", first.text}
    for likelihood, at, other in sorted(forks, key=lambda each: -each[0]):
        if likelihood < 0.02 or len(others) == params.num_candidates - 1:
            break
        alone = opened(decoder, token_ids)
        for pick in picks[:at]:
            alone.decode(pick.token_id, check)
        begun = [*picks[:at], other]
        made = generate(
            writing(None, params, on_text=None, begun=begun), PlainSteps(alone, num_layers, check)
        )
        if made.text not in texts:
            texts.add(made.text)
            others.append(made)
    return prompt, first, sorted(others, key=lambda each: -np.prod(each.probabilities))


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_candidates=st.integers(2, 4),
    max_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
)
def test_candidates_are_those_decoded_alone(decoder, seed, num_candidates, max_tokens, temperature):
    params = CompletionParams(
        max_tokens, temperature, 1.0, seed, ("zz",), 0.0, num_candidates=num_candidates
    )
    random = np.random.default_rng(seed)
    token_ids = random.integers(0, VOCAB, NUM_TOKENS)
    end_ids = frozenset(random.choice(VOCAB, 40, replace=False).tolist())
    writing = partial(write, end_ids=end_ids, token_bytes=TOKEN_BYTES, forced="", check=check)
    after, first, others = reference(decoder, writing, params, token_ids)
    prompt = opened(decoder, token_ids)
    steps = PlainSteps(prompt, 2, check)
    several = Candidates(
        *(writing, params, steps),
        another=lambda _: PlainSteps(prompt, 2, check),
        open_branches=partial(Branches, prompt, check, range(2)),
    )
    found, found_others = several.decode(prompt.logits(check), None, None)
    for ours, theirs in zip([found, *found_others], [first, *others], strict=True):
        assert (ours.token_ids, ours.text) == (theirs.token_ids, theirs.text)
        assert ours.stop_reason == theirs.stop_reason
        assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-3)
    assert_same_rows(prompt, after)


def test_candidates_of_the_embedded_model_are_those_decoded_alone():
    """Through a session, with drafts as long as the first is alone."""
    text = "def larger(a, b):\n    \n\n\nprint(larger(1, 2))\n"
    place = text.index("    \n\n") + 4
    params = CompletionParams(16, 0.0, 1.0, 0, ("\n\n",), 0.0, num_candidates=3, depth="exact")
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    session = engine.open("a", text, path="a.py", model="embedded", policy="turn")
    found = session.complete(place, params, check)
    model = session.model
    assert model.template is not None
    writing = partial(
        write,
        end_ids=model.template.end_ids,
        token_bytes=model.tokenizer.token_bytes(),
        forced=session.forced_text,
        check=check,
    )
    _, first, others = reference(model.decoder, writing, params, session.prompt.token_ids)
    assert (found.text, found.token_ids) == (first.text, first.token_ids)
    assert found.other_texts == tuple(each.text for each in others)
    assert len(others) == 2
