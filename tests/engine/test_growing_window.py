"""A window that is narrow where nothing is computed, and grows: against sessions of that width."""

import contextlib

import numpy as np
import pytest

from keyturn.engine.engine import Engine
from keyturn.engine.model.pass_cost import PassCost
from keyturn.engine.prompt.growing_window import WHOLE, ColdLimit
from keyturn.engine.prompt.repair import SHARE
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.errors import Interrupted

from ..tolerance import assert_close
from .test_session import (
    GREEDY,
    SOURCE,
    assert_same_prompt,
    check,
    new_engine,
    prompt_ids,
    torch,
)

WINDOW, NARROW, CHUNK = 1200, 200, 64
AT = SOURCE.index("\n", len(SOURCE) // 2)


@pytest.fixture
def opened(tiny_model):
    """Opens `SOURCE`, or another text: narrow at first if it is to."""

    def open_(text=SOURCE, policy="repair", layout="spm", window=WINDOW, narrow=NARROW, model=None):
        engine = new_engine(window_tokens=window, chunk_tokens=CHUNK)
        model = model or str(tiny_model)
        session = engine.open("a", text, path="a.py", model=model, policy=policy, layout=layout)
        session.cold_limit = ColdLimit(max_rows=narrow) if narrow else WHOLE
        return session

    return open_


def interrupted_after(num_rows, session):
    """A check that is left once so many rows have been computed."""
    most = session.prompt.num_rows_forwarded + num_rows

    def check_rows():
        if session.prompt.num_rows_forwarded >= most:
            raise Interrupted("more urgent work waits")

    return check_rows


def assert_exact_when_healed(session, fresh, offset):
    while session.heal(10_000, check):
        pass
    assert session.num_stale == 0
    expected = fresh.complete(offset, GREEDY, check)
    assert session.complete(offset, GREEDY, check).token_ids == expected.token_ids
    assert_same_prompt(session, fresh)
    ours, theirs = (one.prompt.score([5, 6, 7], check) for one in (session, fresh))
    assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_first_answer_is_that_of_a_narrow_window_and_the_grown_one_that_of_a_prefill(
    opened, layout
):
    session = opened(layout=layout)
    completion = session.complete(AT, GREEDY, check)
    assert session.is_narrow
    assert completion.num_prompt_tokens <= NARROW
    small = opened(layout=layout, policy="full", window=NARROW, narrow=0)
    assert completion.token_ids == small.complete(AT, GREEDY, check).token_ids
    assert_same_prompt(session, small)
    before = session.prompt.num_rows_forwarded
    session.grow(check)
    assert not session.is_narrow
    whole = session.num_prompt_tokens
    assert whole > 4 * NARROW
    # What was there is turned: each pass computes its rows and the cursor's.
    computed = session.prompt.num_rows_forwarded - before
    assert computed <= whole - completion.num_prompt_tokens + 8 * (whole - NARROW) // CHUNK
    assert_exact_when_healed(session, opened(layout=layout, policy="full", narrow=0), AT)


def test_model_without_marks_grows_to_the_front(opened, continuing_model):
    model = str(continuing_model)
    session = opened(layout=None, model=model)
    assert session.complete(AT, GREEDY, check).num_prompt_tokens <= NARROW
    assert session.is_narrow
    session.grow(check)
    fresh = opened(layout=None, model=model, policy="full", narrow=0)
    assert_exact_when_healed(session, fresh, AT)


def test_jump_of_the_cursor_narrows_the_window_again_and_a_short_step_does_not(opened):
    session = opened()
    session.complete(AT, GREEDY, check)
    session.grow(check)
    near = SOURCE.index("\n", AT + 60)
    session.complete(near, GREEDY, check)
    assert not session.is_narrow
    far = SOURCE.index("\n", 400)
    before = session.prompt.num_rows_forwarded
    session.complete(far, GREEDY, check)
    assert session.is_narrow
    assert session.prompt.num_rows_forwarded - before <= 2 * NARROW + GREEDY.max_tokens
    session.grow(check)
    assert_exact_when_healed(session, opened(policy="full", narrow=0), far)


def test_completion_while_it_grows_is_served_from_the_rows_that_are_there(opened):
    session = opened()
    session.complete(AT, GREEDY, check)
    for _ in range(3):
        width = session.window.width
        with pytest.raises(Interrupted):
            session.grow(interrupted_after(2 * CHUNK, session))
        assert session.window.width > width
        before = session.prompt.num_rows_forwarded
        session.complete(AT, GREEDY, check)
        assert session.is_narrow
        repaired = 2 * (SHARE * WINDOW + 2)
        assert session.prompt.num_rows_forwarded - before <= GREEDY.max_tokens + 2 + repaired
    session.grow(check)
    assert_exact_when_healed(session, opened(policy="full", narrow=0), AT)


def test_interrupted_growth_loses_one_step_at_most(opened):
    uninterrupted, session = opened(), opened()
    for one in (uninterrupted, session):
        one.set_cursor(AT)
        one.sync(check)
    uninterrupted.grow(check)
    num_interrupted = 0
    while session.is_narrow:
        try:
            session.grow(interrupted_after(2 * CHUNK, session))
        except Interrupted:
            num_interrupted += 1
    session.sync(check)  # the last step may have been interrupted too
    assert num_interrupted > 3
    lost = session.prompt.num_rows_forwarded - uninterrupted.prompt.num_rows_forwarded
    assert lost <= num_interrupted * (CHUNK + 2)
    assert prompt_ids(session) == prompt_ids(uninterrupted)


def test_passes_that_do_not_fit_between_two_keys_become_short_ones_that_do(opened, monkeypatch):
    session = opened()
    session.set_cursor(AT)
    session.sync(check)
    compute, passes = session.prompt.decoder.last_logits, []

    def hurried(cache, slots, *args):
        passes.append(len(slots))
        if len(slots) > CHUNK // 2 + 1:  # the cursor's row goes along
            raise Interrupted("more urgent work waits")
        return compute(cache, slots, *args)

    monkeypatch.setattr(session.prompt.decoder, "last_logits", hurried)
    for _ in range(2 * WINDOW // CHUNK):
        if session.is_narrow:
            with contextlib.suppress(Interrupted):
                session.grow(check)
    assert not session.is_narrow
    assert max(passes) > CHUNK // 2 + 1
    monkeypatch.undo()
    assert_exact_when_healed(session, opened(policy="full", narrow=0), AT)


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_edits_arrive_while_it_grows(opened, layout):
    random = np.random.default_rng(0)
    session = opened(layout=layout)
    at = AT
    session.complete(at, GREEDY, check)
    for typed in "x = f(y)":
        session.edit([(at, at, typed)])
        at += 1
        elsewhere = int(random.integers(0, AT - 100))
        session.edit([(elsewhere, elsewhere + 3, "# new\n")])
        at += 3
        with pytest.raises(Interrupted):
            session.grow(interrupted_after(CHUNK, session))
        session.complete(at, GREEDY, check)
    assert session.is_narrow
    session.grow(check)
    session.set_cursor(0)  # a frozen layout is not a fresh document's
    session.set_cursor(at)
    session.grow(check)
    fresh = opened(session.text, layout=layout, policy="full", narrow=0)
    assert_exact_when_healed(session, fresh, at)


def test_policies_that_do_not_repair_and_exact_completions_have_the_whole_window(opened):
    fresh = opened(policy="full", narrow=0)
    expected = fresh.complete(AT, GREEDY, check)
    session = opened()
    session.complete(AT, GREEDY, check)
    assert session.is_narrow
    exact = session.complete(AT, GREEDY, check, heal=True)
    assert not session.is_narrow
    assert (exact.token_ids, session.num_stale) == (expected.token_ids, 0)
    assert_same_prompt(session, fresh)


@pytest.mark.parametrize("policy", ["full", "prefix", "turn", "heal"])
def test_limit_of_the_engine_holds_for_repair_alone(tiny_model, policy):
    config = EngineConfig("cpu", "float32", 1, 1 << 30, WINDOW, CHUNK, cold_budget_ms=1e-6)
    for name in (policy, "repair"):
        session = Engine(config).open(
            "a", SOURCE, path="a.py", model=str(tiny_model), policy=name, layout=None
        )
        session.set_cursor(AT)
        session.sync(check)
        assert session.is_narrow == (name == "repair")


def test_dropped_rows_are_as_good_as_none(opened):
    session = opened()
    session.complete(AT, GREEDY, check)
    session.grow(check)
    session.drop_cache()
    assert session.complete(AT, GREEDY, check).num_prompt_tokens <= NARROW
    assert session.is_narrow


def test_number_of_missing_rows_is_what_a_patch_computes(opened):
    session = opened(narrow=0)
    prompt, encode = session.prompt, session.window.whole.encode
    whole = encode(SOURCE, AT, AT).tokens
    assert prompt.num_missing(whole) == sum(map(len, whole.values()))
    session.set_cursor(AT)
    session.sync(check)
    assert prompt.num_missing(whole) == 0
    session.edit([(AT - 50, AT - 40, "something_else")])
    edited = encode(session.text, AT + 4, AT + 4).tokens
    missing = prompt.num_missing(edited)
    assert prompt.num_missing(edited) == missing > 0
    before = prompt.num_rows_forwarded
    session.sync(check)
    assert prompt.num_rows_forwarded - before == missing + 1  # the cursor's


def test_limit_is_what_the_budget_buys_and_never_very_little():
    cost = PassCost()
    assert ColdLimit(600.0).rows(2048, cost) == 512
    assert ColdLimit(600.0).rows(300, cost) == 300
    for num_rows in (10, 100, 300):
        cost.observe(num_rows, 1.0 * num_rows)
    assert ColdLimit(600.0).rows(2048, cost) == pytest.approx(600, abs=2)
    assert ColdLimit(1.0).rows(2048, cost) == 512
    assert ColdLimit(0.0).rows(2048, cost) == 2048
    assert ColdLimit(1.0, max_rows=7).rows(2048, cost) == 7


def test_a_place_that_was_left_is_not_narrow_again(opened):
    session = opened()
    first, second = (SOURCE.index("\n", at) for at in (len(SOURCE) // 5, len(SOURCE) * 4 // 5))
    session.complete(first, GREEDY, check)
    session.grow(check)
    session.complete(second, GREEDY, check)
    assert session.is_narrow
    session.grow(check)
    session.complete(first, GREEDY, check)
    assert not session.is_narrow  # its rows were kept
