"""A mark of what is wanted behind the prompt: it costs its own row, and no other depends on it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from keyturn.engine.prompt.growing_window import ColdLimit, PromptEncoder
from keyturn.engine.wire.errors import BadRequest

from ..tolerance import assert_close
from .test_other_files import with_sidecar
from .test_session import (
    GREEDY,
    MAX_CHARS,
    SOURCE,
    applied,
    assert_first_layer_is_exact,
    assert_same_prompt,
    check,
    new_engine,
    prompt_ids,
    random_edits,
)

IDS = {"line": 5, "block": 6}
PARAMS = {wanted: replace(GREEDY, wanted=wanted) for wanted in ("", *IDS)}
POLICIES = ["full", "prefix", "turn", "repair", "heal"]
AT = SOURCE.index("\n", len(SOURCE) // 2)


@pytest.fixture(scope="module")
def told_model(tiny_model, tmp_path_factory):
    """The tiny model, trained to be told what is wanted."""
    return with_sidecar(tiny_model, tmp_path_factory.mktemp("told") / "model", wanted_ids=IDS)


@pytest.fixture(scope="module")
def engine():
    return new_engine()


@pytest.fixture
def opened(engine, told_model):
    def open_(text, policy, key=None, layout="spm", model=told_model, engine=engine):
        key = key or (policy, model)
        return engine.open(key, text, path="a.py", model=model, policy=policy, layout=layout)

    return open_


def computed(session, offset, wanted):
    """Complete; return how many of the prompt's rows that computed, repaired ones included."""
    completion = session.complete(offset, PARAMS[wanted], check)
    assert not wanted or prompt_ids(session)[-1] == IDS[wanted]
    return completion.num_prompt_tokens - completion.num_reused_tokens


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["prefix", "turn", "repair", "heal"])
def test_random_edits_lead_to_what_a_full_prefill_gives(opened, policy):
    """As `test_session` has it without the mark, which changes from completion to completion."""
    random = np.random.default_rng(POLICIES.index(policy))
    for _ in range(25):
        start = int(random.integers(0, len(SOURCE) - MAX_CHARS))
        text = SOURCE[start : start + int(random.integers(0, MAX_CHARS))]
        layout = str(random.choice(["spm", "psm"]))
        session = opened(text, policy, layout=layout)
        for _ in range(int(random.integers(1, 5))):
            wanted, cursor = str(random.choice([*PARAMS])), int(random.integers(0, len(text) + 1))
            session.complete(cursor, PARAMS[wanted], check)
            if random.random() < 0.5:
                session.heal(40, check)
            edits = random_edits(random, text)
            text = applied(text, edits)
            session.edit(edits)
            session.sync(check)
        wanted, cursor = str(random.choice([*PARAMS])), int(random.integers(0, len(text) + 1))
        fresh = opened(text, "full", layout=layout)
        expected = fresh.complete(cursor, PARAMS[wanted], check)
        scored = fresh.prompt.score([7, 8, 9], check)
        if wanted:
            assert prompt_ids(fresh)[-1] == IDS[wanted]
        completion = session.complete(cursor, PARAMS[wanted], check)
        assert_same_prompt(session, fresh)
        if policy in ("turn", "repair"):
            assert_first_layer_is_exact(session, fresh)
            session.heal(10_000, check)
            completion = session.complete(cursor, PARAMS[wanted], check)
        assert session.num_stale == 0
        assert completion.token_ids == expected.token_ids
        assert_close(session.prompt.score([7, 8, 9], check), scored, torch.float32)


@pytest.mark.parametrize("layout", ["spm", "psm"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_what_is_wanted_costs_the_last_row_whatever_was_warmed(opened, policy, layout):
    session = opened(SOURCE[:2500], policy, layout=layout)
    session.set_cursor(1200)
    session.sync(check)
    session.prompt.logits(check)
    for wanted in ("line", "block", "", "line"):
        assert computed(session, 1200, wanted) == 1
        session.sync(check)  # what idle time does finds the same prompt
        assert computed(session, 1200, wanted) == 0
    # With stale rows it is no other: what is repaired stays so.
    session.edit([(100, 100, "import os\n\n\n"), (400, 430, "")])
    at = 1200 + 12 - 30
    computed(session, at, "line")
    if policy in ("turn", "repair"):
        assert session.num_stale > 0
    for wanted in ("block", "", "line", ""):
        assert computed(session, at, wanted) == 1


def test_healing_leaves_the_mark_where_it_is(opened):
    session = opened(SOURCE[:2500], "repair")
    session.complete(1200, PARAMS["line"], check)
    session.edit([(100, 100, "import os\n")])
    session.complete(1210, PARAMS["line"], check)
    while session.heal(64, check):
        assert prompt_ids(session)[-1] == IDS["line"]
    assert session.num_stale == 0
    assert computed(session, 1210, "line") == 0


def test_typing_computes_what_was_typed_and_the_mark(opened):
    session = opened(SOURCE[:1500], "turn")
    session.complete(700, PARAMS["line"], check)
    before = session.prompt.num_rows_forwarded
    for at, character in enumerate("name = value"):
        session.edit([(700 + at, 700 + at, character)])
        session.sync(check)
    assert session.prompt.num_rows_forwarded - before <= 3 * len("name = value")
    assert session.num_stale == 0
    assert computed(session, 712, "line") == 0


@pytest.mark.parametrize("in_between", ["line", "block", ""])
def test_undo_finds_what_was_repaired_before_whatever_was_wanted_since(opened, in_between):
    session = opened(SOURCE[:3000], "repair")
    session.complete(2500, PARAMS[""], check)
    session.edit([(100, 100, SOURCE[4000:4400])])
    at = 2900
    computed(session, at, "line")
    num_stale = session.num_stale
    assert num_stale > 0
    session.edit([(1200, 1200, SOURCE[5000:5200])])
    assert computed(session, at + 200, in_between) > 1
    session.edit([(1200, 1400, "")])
    session.sync(check)  # in idle time: it goes on saying what was wanted last
    assert computed(session, at, "line") <= 2
    assert session.num_stale == num_stale


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_for_a_model_without_such_a_mark_nothing_changes(opened, tiny_model, policy, layout):
    one, other = (
        opened(SOURCE[:1500], policy, key=name, layout=layout, model=str(tiny_model))
        for name in ("one", "other")
    )
    text = one.text
    random = np.random.default_rng(3)
    for wanted in ("line", "block", "", "line"):
        other.complete(700, PARAMS["block"], check)
        one.complete(700, GREEDY, check)
        first = one.complete(700, GREEDY, check)
        second = other.complete(700, PARAMS[wanted], check)
        assert first.token_ids == second.token_ids
        assert first.num_reused_tokens == second.num_reused_tokens
        assert_same_prompt(one, other)
        assert np.array_equal(one.prompt.rows.positions, other.prompt.rows.positions)
        assert all(map(torch.equal, one.prompt.rows.layer(1), other.prompt.rows.layer(1)))
        edits = random_edits(random, text)
        text = applied(text, edits)
        for session in (one, other):
            session.edit(edits)
            session.sync(check)
        assert one.prompt.num_rows_forwarded == other.prompt.num_rows_forwarded


def test_it_is_wanted_of_what_is_assumed_too(opened):
    """The mark stands before both: one line and several more are several."""
    session = opened(SOURCE, "full")
    for assumed, wanted, mark in (
        ("x", "line", "line"),
        ("x\ny", "line", "block"),
        ("x", "block", "block"),
        ("x\ny", "", ""),
    ):
        ahead = session.complete(AT, replace(PARAMS[wanted], assumed=assumed), check)
        assert prompt_ids(session)[-1:] == [IDS[mark]] if mark else session.prompt.num_tokens
        told = session.complete(AT, replace(PARAMS[mark], assumed=assumed), check)
        assert ahead.token_ids == told.token_ids
        untold = prompt_ids(session)[: -1 if mark else None]
        session.complete(AT, GREEDY, check)
        assert prompt_ids(session) == untold


def test_drafts_and_candidates_write_the_same_behind_it(opened):
    session = opened(SOURCE, "repair")
    params = replace(PARAMS["line"], max_tokens=24)
    plain = session.complete(AT, replace(params, depth="full"), check)
    assert session.complete(AT, replace(params, depth="exact"), check).text == plain.text
    found = session.complete(AT, replace(params, depth="exact", num_candidates=3), check)
    assert found.text == plain.text and len(found.other_texts) == 2


def test_white_space_is_generated_again_behind_the_mark(tiny_model, tmp_path):
    fields = {"wanted_ids": IDS, "regenerate_white_space": True}
    model = with_sidecar(tiny_model, tmp_path / "model", **fields)
    session = new_engine().open("a", SOURCE, path="a.py", model=model, policy="turn", layout="spm")
    at = SOURCE.index("\n    ", 700) + 5
    completion = session.complete(at, PARAMS["block"], check)
    assert session.forced_text == "\n    "
    ids = prompt_ids(session)
    assert ids[-1] == IDS["block"]
    assert not session.model.tokenizer.decode(ids[:-1]).endswith((" ", "\n"))
    pieces = session.model.tokenizer.token_bytes()
    written = b"".join(pieces[token_id] for token_id in completion.token_ids)
    assert written.decode(errors="replace").startswith("\n    " + completion.text[:1])


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_the_same_text_is_shown_with_the_mark_and_without(opened, layout):
    """Wherever the window's limit falls: else what was warmed would be of no use."""
    model = opened("", "turn").model
    text = "读取配置文件并返回字典" * 300
    at = len(text) // 2
    for window in range(300, 340):
        encoder = PromptEncoder(
            model.template, model.tokenizer, layout, window, model.chars_per_token, "a.py"
        )
        shown = []
        for encoder.wanted in ("", "line", "block"):
            prompt = encoder.encode(text, at, at)
            assert prompt.num_tokens <= window
            shown.append(prompt.layout.window)
        assert shown[0] == shown[1] == shown[2]


def test_narrow_window_grows_behind_the_mark(opened):
    narrow = opened(SOURCE, "repair", engine=new_engine(window_tokens=1200))
    narrow.cold_limit = ColdLimit(max_rows=200)
    assert narrow.complete(AT, PARAMS["line"], check).is_narrow
    assert prompt_ids(narrow)[-1] == IDS["line"]
    narrow.grow(check)
    assert not narrow.is_narrow
    while narrow.heal(10_000, check):
        pass
    full = opened(SOURCE, "full", engine=new_engine(window_tokens=1200))
    expected = full.complete(AT, PARAMS["line"], check)
    assert narrow.complete(AT, PARAMS["line"], check).token_ids == expected.token_ids
    assert_same_prompt(narrow, full)


def test_unknown_wish_names_what_there_is(opened):
    session = opened(SOURCE[:300], "turn")
    with pytest.raises(BadRequest, match="line, block"):
        session.complete(100, replace(GREEDY, wanted="lines"), check)
