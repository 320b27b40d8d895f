"""Other files at the front of the prompt: against sessions that had them from the start."""

import json
import shutil

import pytest

from keyturn.engine.prompt.growing_window import WHOLE, ColdLimit
from keyturn.engine.prompt.other_files import fitting
from keyturn.engine.prompt.repair import SHARE
from keyturn.engine.wire.errors import Interrupted

from .test_growing_window import (
    AT,
    CHUNK,
    NARROW,
    WINDOW,
    assert_exact_when_healed,
    interrupted_after,
)
from .test_session import GREEDY, SOURCE, assert_same_prompt, check, new_engine, prompt_ids

OTHERS = [("lib/b.py", "def b(x):\n    return x + 1\n"), ("c.py", "class C:\n    y = 2\n")]
MARK = 5  # before a path
PATHS = [path for path, _ in OTHERS]


def with_sidecar(tiny_model, folder, **fields):
    """A copy of the tiny model whose fim.json says so of its template's fields."""
    shutil.copytree(tiny_model, folder)
    session = new_engine().open("a", "", path="a.py", model=str(tiny_model), policy="turn")
    template = session.model.template
    text = json.dumps(
        {name: getattr(template, name) for name in template.__slots__} | fields, default=list
    )
    (folder / "fim.json").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def marked_model(tiny_model, tmp_path_factory):
    """The tiny model, trained to see other files before the prompt."""
    folder = tmp_path_factory.mktemp("marked") / "model"
    return with_sidecar(tiny_model, folder, header_ids=[MARK])


@pytest.fixture
def opened(marked_model):
    def open_(policy="repair", narrow=0, layout="spm"):
        engine = new_engine(window_tokens=WINDOW, chunk_tokens=CHUNK)
        session = engine.open(
            "a", SOURCE, path="a.py", model=marked_model, policy=policy, layout=layout
        )
        session.cold_limit = ColdLimit(max_rows=narrow) if narrow else WHOLE
        return session

    return open_


def shown(session):
    """The other files at the front of the prompt, whose tokens are there to be seen."""
    others = [path for path, _ in session.window.whole.others]
    assert bool(others) == bool(session.num_other_tokens) or session.is_narrow
    return others


def with_others(session, others=OTHERS):
    session.show_others(others)
    session.set_cursor(AT)
    session.grow(check)
    return session


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_they_come_first_and_what_is_healed_is_a_prefill_of_all(opened, layout):
    session = opened(layout=layout)
    session.complete(AT, GREEDY, check)
    before = session.prompt.num_rows_forwarded
    with_others(session)
    # What was there is turned: a file costs its rows, the name's, those of cut edges and a repair.
    repaired = SHARE * WINDOW + 2
    computed = session.prompt.num_rows_forwarded - before
    assert computed <= session.num_other_tokens + 32 + repaired
    assert shown(session) == PATHS
    first = session.model.tokenizer.encode(f"{PATHS[0]}\n{OTHERS[0][1]}").token_ids
    assert prompt_ids(session)[: 1 + len(first)] == [MARK, *first]
    assert session.num_prompt_tokens <= WINDOW
    assert_exact_when_healed(session, with_others(opened("full", layout=layout)), AT)


def test_completion_before_they_are_there_is_that_of_the_file_alone(opened):
    session, alone = opened(), opened()
    session.complete(AT, GREEDY, check)
    session.show_others(OTHERS)
    expected = alone.complete(AT, GREEDY, check)
    before = session.prompt.num_rows_forwarded
    assert session.complete(AT, GREEDY, check).token_ids == expected.token_ids
    assert session.prompt.num_rows_forwarded - before <= GREEDY.max_tokens + 2
    assert session.has_to_grow and not shown(session)


def test_what_interrupts_finds_the_files_that_were_done(opened):
    session = opened()
    session.complete(AT, GREEDY, check)
    long = [(path, text * 5) for path, text in OTHERS]
    session.show_others(long)
    with pytest.raises(Interrupted):
        session.grow(interrupted_after(1, session))
    session.sync(check)
    assert shown(session) == []
    at = session.prompt.num_rows_forwarded
    with pytest.raises(Interrupted):
        session.grow(lambda: interrupt() if session.window.whole.others else None)
    assert session.prompt.num_rows_forwarded > at
    session.sync(check)
    assert shown(session) == PATHS[:1]
    session.grow(check)
    assert shown(session) == PATHS and not session.has_to_grow
    assert_exact_when_healed(session, with_others(opened("full"), long), AT)


def interrupt():
    raise Interrupted("more urgent work waits")


def test_a_file_that_was_done_makes_passes_longer_again(opened):
    session = opened()
    session.set_cursor(AT)
    session.sync(check)
    session.window.interrupted()
    assert session.window.pass_tokens == CHUNK // 2
    assert shown(with_others(session, OTHERS[:1])) == PATHS[:1]
    assert session.window.pass_tokens == CHUNK


def test_those_that_are_not_wanted_any_more_go(opened):
    session = with_others(opened())
    with_others(session, OTHERS[1:])
    assert shown(session) == PATHS[1:]
    with_others(session, [])
    assert shown(session) == [] and not session.shows_others
    alone = opened("full")
    assert_exact_when_healed(session, alone, AT)


def test_a_narrow_window_shows_none_and_a_whole_one_does(opened):
    session = opened(narrow=NARROW)
    session.show_others(OTHERS)
    session.complete(AT, GREEDY, check)
    assert session.is_narrow and shown(session) == []
    session.grow(check)
    assert shown(session) == PATHS and not session.has_to_grow


def test_keystroke_behind_them_costs_what_it_did(opened):
    session = opened()
    session.complete(AT, GREEDY, check)
    with_others(session)
    before = session.prompt.num_rows_forwarded
    session.edit([(AT, AT, "x")])
    session.sync(check)
    alone = opened()
    alone.complete(AT, GREEDY, check)
    at = alone.prompt.num_rows_forwarded
    alone.edit([(AT, AT, "x")])
    alone.sync(check)
    computed = session.prompt.num_rows_forwarded - before
    assert 0 < computed <= alone.prompt.num_rows_forwarded - at + 1
    assert shown(session) == PATHS


def test_model_that_was_not_trained_on_them_sees_none(tiny_model):
    session = new_engine().open("a", SOURCE, path="a.py", model=str(tiny_model), policy="repair")
    with_others(session)
    assert not session.shows_others and shown(session) == []


def test_they_get_a_quarter_of_the_window_in_whole_lines(opened):
    session = with_others(opened(), [("b.py", SOURCE), ("c.py", SOURCE)])
    assert WINDOW // 8 < session.num_other_tokens <= WINDOW // 4
    ((_, text),) = session.window.whole.others
    assert SOURCE.startswith(text) and text.endswith("\n")
    assert fitting(OTHERS, session.model.tokenizer, 3) == ()
    assert fitting(OTHERS, session.model.tokenizer, 1000) == tuple(OTHERS)
    assert_same_prompt(session, with_others(opened(), [("b.py", SOURCE)]))
