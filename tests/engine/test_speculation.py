"""Drafts change nothing but the time: a tiny random model, and drafts that are right or wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.engine import Engine
from keyturn.engine.generation.draft import (
    LONGEST_MATCH,
    Draft,
    DraftRecord,
    LookupWorth,
    OwnDrafts,
    PastTexts,
    PromptLookup,
    Rates,
)
from keyturn.engine.model.captured_pass import DECODE_ROWS
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.pass_cost import STEP_SIZES, StepCost
from keyturn.engine.model.passes import GraphPass
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import Cancelled
from keyturn.kernels import dispatch

TEXT = "def first(a, b):\n    return a + b\n\n\ndef second(a, b):\n    return \n\nx = first(1, 2)\n"
AT = TEXT.index("return \n") + len("return ")
# What drafts leave out of the two layers, under the name of a source.
SKIPPED = {"skips": bytes([0, 2]), "skips all along": bytes([2, 1])}
SOURCES = ["lookup", "exits", *SKIPPED]
PARAMS = CompletionParams(24, 0.0, 1.0, 0, (), 0.0, depth="exact")


def check():
    pass


@pytest.fixture(scope="module")
def session(tiny_model):
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    return engine.open("a", TEXT, path="a.py", model=str(tiny_model), policy="turn")


TAKE = PromptLookup.take


def draft_with(monkeypatch, find):
    """Draft what `find` says, which gets the lookup and a number; `num_taken` is the lookup's."""

    def counted(lookup, token_id):
        lookup.num_taken += 1
        TAKE(lookup, token_id)

    monkeypatch.setattr(PromptLookup, "num_taken", 0, raising=False)
    monkeypatch.setattr(PromptLookup, "take", counted)
    monkeypatch.setattr(PromptLookup, "draft", find)


@pytest.fixture
def drafting(session, monkeypatch):
    """Give drafts of one's own, which cost nothing, in place of looked up ones; or the model's."""

    def drafting_(source, find=None):
        own = {name: OwnDrafts(gain=float("inf")) for name in ("exits", "skips")}
        fresh = DraftRecord(sources=frozenset({source.split()[0]}), **own)
        skips = {"python": SKIPPED[source]} if source in SKIPPED else {}
        monkeypatch.setattr(session, "model", replace(session.model, skips=skips))
        for name, value in vars(fresh).items():
            monkeypatch.setattr(session.model.drafts, name, value)
        if find is not None:
            draft_with(monkeypatch, find)
            monkeypatch.setattr(StepCost, "all_ms", lambda cost, most, slots: [1.0] * most)
        # Whatever this machine takes to search and to drop.
        monkeypatch.setattr(LookupWorth, "is_due", lambda worth, step_ms: True)
        monkeypatch.setattr(LookupWorth, "note_drop", lambda worth, ms: None)

    return drafting_


def mixed(random, token_ids):
    """Return a `draft` of tokens that are to come, some of them replaced at random."""
    starts = []

    def find(lookup, max_tokens):
        if not starts or lookup not in starts:
            starts[:] = [lookup, lookup.num_taken - 1]
        done = lookup.num_taken - starts[1]
        ahead = list(token_ids[done : done + int(random.integers(0, 7))])
        wrong = random.random(len(ahead)) < random.choice([0.0, 0.2, 1.0])
        ahead = [5 if is_wrong else each for each, is_wrong in zip(ahead, wrong, strict=True)]
        return Draft(ahead[: max(0, max_tokens)], LONGEST_MATCH)

    return find


def decoded(session, **changes):
    """Complete; return what came of it, and the rows in order of position."""
    made = session.complete(AT, replace(PARAMS, **changes), check)
    cache = session.prompt.rows
    order = cache.by_position()
    rows = [part[:, :, torch.from_numpy(order.copy())] for part in cache.storage]
    return made, (cache.token_ids[order].tolist(), cache.positions[order].tolist()), rows


def assert_equal(found, expected):
    made, wanted = found[0], expected[0]
    assert (made.text, made.token_ids, made.stop_reason) == (
        wanted.text,
        wanted.token_ids,
        wanted.stop_reason,
    )
    assert made.probabilities == pytest.approx(wanted.probabilities, rel=1e-4)
    assert made.other_texts == wanted.other_texts
    assert found[1] == expected[1]
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


CASES = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.5, "top_p": 0.9, "seed": 4},
    {"max_tokens": 7},
    {"min_probability": 1e-9},
    {"num_candidates": 3},
    {"assumed": "a + "},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_text_probabilities_and_rows_are_those_without_drafts(
    session, drafting, source, changes
) -> None:
    plain = decoded(session, depth="full", **changes)
    random = np.random.default_rng(1)
    for _ in range(6 if source == "lookup" else 1):
        drafting(source, mixed(random, plain[0].token_ids) if source == "lookup" else None)
        assert_equal(decoded(session, **changes), plain)


@pytest.fixture
def captured(tiny_model, monkeypatch):
    """A session whose steps are launched as graphs are captured, with torch's own kernels."""
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    monkeypatch.setattr(GraphPass, "exists_for", staticmethod(lambda _: True))
    monkeypatch.setattr(StepCost, "all_ms", lambda cost, most, slots: [1.0] * most)
    # Whatever this machine takes to search and to drop.
    monkeypatch.setattr(LookupWorth, "is_due", lambda worth, step_ms: True)
    monkeypatch.setattr(LookupWorth, "note_drop", lambda worth, ms: None)
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    return engine.open("a", TEXT, path="a.py", model=str(tiny_model), policy="repair")


@pytest.mark.parametrize("changes", [{}, CASES[1], {"assumed": "a + ", "place": "line"}], ids=str)
def test_steps_of_graphs_give_the_text_that_others_give(session, captured, monkeypatch, changes):
    plain = decoded(session, depth="full", **changes)
    assert decoded(captured, depth="full", **changes)[0].token_ids == plain[0].token_ids
    random = np.random.default_rng(5)
    for _ in range(4):
        draft_with(monkeypatch, mixed(random, plain[0].token_ids))
        captured.drafts.num_accepted = 0
        assert_equal(decoded(captured, **changes), plain)
    assert captured.drafts.num_drafted > captured.drafts.num_accepted > 0


def test_graphs_are_prepared_on_rows_that_nobody_sees(captured, monkeypatch):
    wanted = decoded(captured)
    cache, runs = captured.prompt.rows, dict.fromkeys(DECODE_ROWS, 0)
    decode = Decoder.decode

    def counting(decoder, cache, slots, check):
        runs[len(slots)] += 1
        return decode(decoder, cache, slots, check)

    def uncaptured(decoder, cache):
        return next((size for size, count in runs.items() if count < 2), None)

    before = everything_of(captured)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", counting)
        patch.setattr(Decoder, "uncaptured", uncaptured)
        for left in range(len(DECODE_ROWS), 0, -1):
            assert captured.prompt.prepare(), left
        assert not captured.prompt.prepare()
    assert everything_of(captured) == before
    assert cache is captured.prompt.rows
    assert_equal(decoded(captured), wanted)


def everything_of(session):
    cache = session.prompt.rows
    rows = [part[:, :, : cache.num_rows].flatten().tolist() for part in cache.storage]
    noted = [cache.record(name).tolist() for name in ("positions", "token_ids", "seen", "debt")]
    return rows, noted, cache.num_fresh, cache.generation, session.num_stale


def test_a_stop_string_amid_accepted_drafts_ends_the_text(session, drafting) -> None:
    plain = decoded(session, depth="full")[0]
    assert len(plain.text) > 6
    stop = (plain.text[4:6],)
    expected = decoded(session, depth="full", stop=stop)
    drafting("lookup", lambda lookup, _: Draft(list(plain.token_ids[lookup.num_taken :])[:9], 8))
    assert_equal(decoded(session, stop=stop), expected)


def test_the_same_seed_draws_the_same_tokens_whatever_is_drafted(session, drafting) -> None:
    # So the distribution is the same, which accepting by chance would only be over many seeds.
    random = np.random.default_rng(2)
    for seed in range(20):
        sampled = {"temperature": 1.0, "seed": seed, "max_tokens": 8}
        plain = session.complete(AT, replace(PARAMS, depth="full", **sampled), check)
        drafting("lookup", mixed(random, plain.token_ids))
        assert session.complete(AT, replace(PARAMS, **sampled), check).token_ids == plain.token_ids


@pytest.mark.parametrize("source", SOURCES)
def test_cancelled_anywhere_it_leaves_no_drafted_row(session, drafting, source) -> None:
    plain = decoded(session, depth="full")
    random = np.random.default_rng(3)
    num_rows = session.prompt.num_tokens
    for last in range(3, 60, 4):
        drafting(source, mixed(random, plain[0].token_ids) if source == "lookup" else None)
        calls = iter(range(last))

        def cancelled(calls=calls):
            if next(calls, None) is None:
                raise Cancelled("enough")

        try:
            session.complete(AT, PARAMS, cancelled)
        except Cancelled:
            cache = session.prompt.rows
            made = cache.token_ids[cache.by_position()[num_rows:]].tolist()
            assert made == list(plain[0].token_ids[: len(made)])
        assert_equal(decoded(session, depth="full"), plain)


def test_drafts_that_come_true_are_used_and_others_cost_layers(session, drafting) -> None:
    plain = session.complete(AT, replace(PARAMS, depth="full"), check)
    assert plain.num_layers_run == 2.0
    tokens = list(plain.token_ids)
    drafting("lookup", lambda lookup, most: Draft(tokens[lookup.num_taken :][:most][:5], 8))
    assert session.complete(AT, PARAMS, check).num_layers_run == 2.0
    drafting("lookup", lambda *_: Draft([5, 5, 5], 8))
    assert session.complete(AT, PARAMS, check).num_layers_run > 4


def found(before, behind=(), others=(), taken=(), most=4):
    as_array = [np.array(each, dtype=np.int64) for each in (before, behind)]
    lookup = PromptLookup(
        *as_array, [np.array(each, dtype=np.int64) for each in others], max_tokens=20
    )
    for token_id in taken:
        lookup.take(token_id)
    return lookup.draft(most)


def test_the_longest_match_drafts_and_of_several_the_last() -> None:
    assert found([1, 2, 3, 9, 2, 4, 1], taken=[2]).token_ids == [3, 9, 2, 4]
    assert found([2, 3, 7, 2, 5, 6], taken=[2]) == Draft([5, 6, 2], 1)
    assert found([1, 2], [1, 2, 8, 8]) == Draft([8, 8], 2)
    assert found([2, 3, 2, 5], others=[[2, 6], [2, 7, 7]], taken=[2]) == Draft([7, 7], 1)
    assert found([1, 2, 3], taken=[4]).token_ids == found([1, 2, 3], most=0).token_ids == []
    assert found([], taken=[1]).token_ids == []


def test_a_match_does_not_reach_into_another_text() -> None:
    assert found([5, 1, 2], [5]).token_ids == []
    assert found([1, 2], others=[[1], [2, 3]]) == Draft([3], 1)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), min_size=1))
def test_what_is_found_stood_there(before, taken) -> None:
    draft = found(before, taken=taken[:20])
    text = before + taken[:20]
    if draft.token_ids:
        wanted = text[len(text) - draft.num_matched :] + draft.token_ids
        places = range(len(text) - len(wanted) + 1)
        assert any(text[at : at + len(wanted)] == wanted for at in places)
    else:
        assert text[-1] not in text[:-1]


def test_past_texts_are_few_the_newest_last_and_no_scraps() -> None:
    past = PastTexts(lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    past.completed([1])
    past.deleted("  x ")
    past.deleted("y" * 5000)
    assert past.token_ids() == []
    for number in range(10):
        past.completed([number, number])
    past.deleted("word")
    assert [each.tolist() for each in past.token_ids()][-2:] == [[9, 9], list(b"word")]
    assert len(past.token_ids()) < 10


def test_step_cost_follows_what_is_measured_and_observed() -> None:
    cost = StepCost()
    assert cost.ms(1, 100) < cost.ms(2, 100) < cost.ms(16, 100)
    layers = {(size, slots): 10 + size + slots / 100 for size in STEP_SIZES for slots in (100, 400)}
    cost.learn(layers, dict.fromkeys(STEP_SIZES, 2.0))
    assert cost.ms(4, 100) == pytest.approx(17, rel=0.1)
    assert cost.ms(4, 800) == pytest.approx(24, rel=0.1)
    assert cost.ms(16, 100) > cost.ms(8, 100)
    ratio = cost.ms(4, 100) / cost.ms(1, 100)
    for _ in range(100):
        cost.observe(4, 100, 34.0)
        cost.observe(1, 100, cost.ms(1, 100))
    assert cost.ms(4, 100) / cost.ms(1, 100) > 1.2 * ratio


def test_drafting_follows_what_it_takes() -> None:
    cost = StepCost()
    parts = {"num_slots": 100, "share": 0.2, "kept": 0.2, "head_share": 0.2}
    assert cost.ms(1, 100) < cost.drafting_ms(1, **parts) < cost.drafting_ms(2, **parts)
    before = cost.drafting_ms(2, **parts) / cost.ms(1, 100)
    for _ in range(100):
        cost.observe_drafting(cost.drafting_ms(2, **parts), 1.2 * cost.drafting_ms(2, **parts))
        cost.observe(1, 100, 0.8 * cost.ms(1, 100))
    assert cost.drafting_ms(2, **parts) / cost.ms(1, 100) > 1.5 * before


def test_first_layers_that_gain_nothing_rest_and_are_tried_again(session, drafting) -> None:
    drafting("exits")
    record = session.model.drafts
    record.exits.gain = 0.9
    made = session.complete(AT, PARAMS, check)
    assert record.num_drafted == 0
    assert record.exits.waited == len(made.token_ids) - 2
    record.exits.waited = 1000
    session.complete(AT, PARAMS, check)
    assert record.num_drafted > 0
    assert record.exits.waited < 1000
    record.num_drafted, record.exits.gain = 0, float("inf")
    session.complete(AT, PARAMS, check)
    assert record.num_drafted > 2
    assert record.exits.gain == float("inf")


@pytest.mark.parametrize("layout", ["psm", None])
def test_other_layouts_and_white_space_written_again(tiny_model, continuing_model, layout) -> None:
    model = str(tiny_model if layout else continuing_model)
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    session = engine.open("a", TEXT, path="a.py", model=model, policy="turn", layout=layout)
    assert session.layout_name == (layout or "prefix")
    session.drafts.exits.gain = 0.5  # only what is looked up
    for text in ("", "a", "first(a"):
        session.edit([(AT, AT, text)])
        plain = session.complete(AT + len(text), replace(PARAMS, depth="full"), check)
        for _ in range(3):
            made = session.complete(AT + len(text), PARAMS, check)
            assert (made.text, made.token_ids) == (plain.text, plain.token_ids)
    assert session.drafts.num_accepted > 0


def test_lookups_that_do_not_pay_are_tried_now_and_then_only():
    worth = LookupWorth()
    for _ in range(60):
        assert worth.is_due(step_ms=1.0)
        worth.note_search(promised=1.02, ms=0.001)  # it costs next to nothing
    searched = []
    for _ in range(200):
        searched.append(worth.is_due(step_ms=1.0))
        if searched[-1]:
            worth.note_search(promised=1.02, ms=0.1)
    assert sum(searched[-80:]) == 10, "a tenth of a step for a fiftieth"
    while not worth.is_due(step_ms=1.0):
        pass
    for _ in range(20):
        worth.note_search(promised=2.0, ms=0.1)
    assert all(worth.is_due(step_ms=1.0) for _ in range(20))


def test_one_search_that_was_kept_waiting_ends_no_lookups():
    worth = LookupWorth()
    for _ in range(20):
        assert worth.is_due(step_ms=1.0)
        worth.note_search(promised=1.5, ms=0.01)
        worth.note_drop(ms=0.01)
    worth.note_search(promised=1.5, ms=500.0)
    worth.note_drop(ms=500.0)
    assert worth.is_due(step_ms=1.0)
    assert worth.drop_ms < 0.2


@pytest.mark.parametrize(("drop_ms", "is_drafted"), [(0.0, True), (1e9, False)])
def test_what_dropping_costs_counts_against_a_draft(session, drafting, drop_ms, is_drafted):
    drafting("lookup", lambda lookup, max_tokens: Draft([5] * max(0, max_tokens), 0))
    drafts = session.model.drafts
    drafts.lookup, drafts.worth.drop_ms = Rates([0.5]), drop_ms
    session.complete(AT, replace(PARAMS, max_tokens=4), check)
    assert bool(drafts.num_drafted) == is_drafted


def test_every_drop_of_a_draft_is_timed_and_nothing_is_sought_for_the_last_token(
    session, drafting, monkeypatch
):
    asked, dropped = [], []

    def find(lookup, max_tokens):
        asked.append(max_tokens)
        return Draft([5], 8)

    drafting("lookup", find)
    monkeypatch.setattr(LookupWorth, "note_drop", lambda worth, ms: dropped.append(ms))
    made = session.complete(AT, replace(PARAMS, max_tokens=6), check)
    assert len(made.token_ids) == 6 and 5 not in made.token_ids
    # The sixth has no row, and behind the fifth there would be nothing to draft.
    assert asked == [4, 3, 2, 1]
    assert len(dropped) == len(asked), "each draft was one token, and wrong"
