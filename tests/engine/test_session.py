"""The product's one claim: a patched cache against a full prefill, under random edits."""

import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.generation.decoding_cache import DecodingCache
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import BadPosition, BadRequest, ContextTooLong, Interrupted

from ..tolerance import ONE_ROUNDING, assert_close

SOURCE = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
ODDITIES = ["é", "😀", "\r\n", "\x0c", "\u2028", "\t", "\ud800", "  ", "\n\n", "日本", "x" * 40]
# Several chunks of rows each; of five faults put in by hand that show at all, the rarest did so in
# the 48th sequence.
NUM_SEQUENCES, MAX_CHARS = 150, 1200
GREEDY = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)


def check():
    pass


def new_engine(dtype="float32", cache_bytes=1 << 30, chunk_tokens=64, window_tokens=1200):
    return Engine(EngineConfig("cpu", dtype, 1, cache_bytes, window_tokens, chunk_tokens))


@pytest.fixture(scope="module")
def engine():
    return new_engine()


@pytest.fixture
def opened(engine, tiny_model):
    def open_(text, policy, key=None, layout=None):
        return engine.open(
            key or policy, text, path="a.py", model=str(tiny_model), policy=policy, layout=layout
        )

    return open_


def random_edits(random, text):
    """One to four non-overlapping edits: insertions, deletions and replacements."""
    count = min(int(random.choice([1, 1, 1, 2, 4])), len(text) // 2)
    ends = np.sort(random.choice(len(text) + 1, 2 * max(count, 0), replace=False)).tolist()
    edits = []
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        kind = random.integers(3)
        end = start if kind == 0 else min(end, start + int(random.integers(1, 30)))
        at = int(random.integers(0, len(SOURCE) - 60))
        inserted = SOURCE[at : at + int(random.integers(1, 60))]
        if random.random() < 0.3:
            inserted = str(random.choice(ODDITIES)) + inserted[:3]
        edits.append((start, end, "" if kind == 1 else inserted))
    return edits or [(0, 0, "import os\n")]


def applied(text, edits):
    for start, end, inserted in sorted(edits, reverse=True):
        text = text[:start] + inserted + text[end:]
    return text


def cache_of(session):
    return session.prompt.rows


def prompt_ids(session):
    cache = cache_of(session)
    order = cache.by_position()[: session.prompt.num_tokens]
    return cache.token_ids[order].tolist()


def assert_same_prompt(session, fresh):
    assert session.text == fresh.text
    assert prompt_ids(session) == prompt_ids(fresh)
    positions = np.sort(cache_of(session).positions)
    assert positions.tolist() == list(range(len(positions)))


def assert_first_layer_is_exact(session, fresh):
    """Layer 0 depends on tokens and positions alone, so turning must give it to one rounding.

    Of float32 sums over 32 inputs, which come in another order for another number of rows.
    """
    count = session.prompt.num_tokens
    for part in (0, 1):
        ours, theirs = (
            one.layer(0)[part][:, torch.from_numpy(one.by_position()[:count])]
            for one in (cache_of(session), cache_of(fresh))
        )
        size = theirs.norm(dim=-1, keepdim=True)
        assert ((ours - theirs).abs() <= 32 * ONE_ROUNDING[torch.float32] * size).all()


@pytest.mark.slow
def test_random_edits_leave_prefix_exact_and_turn_exact_in_layer_0_and_healing_exact(opened):
    """Many sequences: `prefix` equals a full prefill; `turn` and `repair` in text, tokens and layer
    0; healed they equal it again."""
    random = np.random.default_rng(0)
    for _ in range(NUM_SEQUENCES):
        start = int(random.integers(0, len(SOURCE) - MAX_CHARS))
        text = SOURCE[start : start + int(random.integers(0, MAX_CHARS))]
        layout = str(random.choice(["spm", "psm"]))
        policies = ("prefix", str(random.choice(["turn", "repair"])))
        sessions = [opened(text, policy, layout=layout) for policy in policies]
        cursor = int(random.integers(0, len(text) + 1))
        for session in sessions:
            session.set_cursor(cursor)
            session.sync(check)
        for _ in range(int(random.integers(1, 5))):
            edits = random_edits(random, text)
            text = applied(text, edits)
            for session in sessions:
                session.edit(edits)
                session.sync(check)
        cursor = int(random.integers(0, len(text) + 1))
        fresh = opened(text, "full", layout=layout)
        expected = fresh.complete(cursor, GREEDY, check)
        scored = fresh.prompt.score([5, 6, 7], check)
        exact, turned = sessions
        assert exact.complete(cursor, GREEDY, check).num_prompt_tokens == expected.num_prompt_tokens
        assert exact.text == text
        assert_same_prompt(exact, fresh)
        assert exact.num_stale == 0
        assert_close(exact.prompt.score([5, 6, 7], check), scored, torch.float32)
        turned.complete(cursor, GREEDY, check)
        assert_same_prompt(turned, fresh)
        assert_first_layer_is_exact(turned, fresh)
        turned.heal(10_000, check)
        assert turned.num_stale == 0
        assert_close(turned.prompt.score([5, 6, 7], check), scored, torch.float32)
        assert turned.complete(cursor, GREEDY, check).token_ids == expected.token_ids


def test_typing_at_the_cursor_computes_only_what_was_typed(opened):
    session = opened(SOURCE[:1500], "turn")
    session.complete(700, GREEDY, check)
    before = session.prompt.num_rows_forwarded
    for at, character in enumerate("name = value"):
        session.edit([(700 + at, 700 + at, character)])
        session.sync(check)
    assert session.prompt.num_rows_forwarded - before <= 2 * len("name = value")
    assert session.num_stale == 0


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_accepted_completion_is_not_computed_again(opened, layout):
    before = SOURCE[: SOURCE.index("\n", 700)]
    inserted = "\nname = value\n"
    session = opened(before, "turn", layout=layout)
    session.set_cursor(len(before))
    session.sync(check)
    encode = session.model.tokenizer.encode
    for token_id in encode(before + inserted).token_ids[len(encode(before).token_ids) :]:
        session.prompt.decode(int(token_id), check)
    forwarded = session.prompt.num_rows_forwarded
    session.edit([(len(before), len(before), inserted)])
    session.sync(check)
    assert session.prompt.num_rows_forwarded == forwarded
    assert session.num_stale == 0
    if layout == "spm":  # where typed text is laid out as in a fresh document
        fresh = opened(session.text, "full", layout=layout)
        expected = fresh.complete(len(session.text), GREEDY, check)
        completion = session.complete(len(session.text), GREEDY, check)
        assert completion.token_ids == expected.token_ids


def test_completion_accepted_after_healing_is_not_computed_again(opened):
    before = SOURCE[: SOURCE.index("\n", 700)]
    inserted = "\nname = value\n"
    session = opened(before, "turn", layout="spm")
    session.complete(len(before), GREEDY, check)
    session.edit([(0, 0, "# moved\n")])
    before = session.text
    session.sync(check)
    encode = session.model.tokenizer.encode
    session.prompt.drop_generated()
    for token_id in encode(before + inserted).token_ids[len(encode(before).token_ids) :]:
        session.prompt.decode(int(token_id), check)
    assert session.num_stale > 0
    session.heal(10_000, check)
    forwarded = session.prompt.num_rows_forwarded
    session.edit([(len(before), len(before), inserted)])
    session.sync(check)
    assert session.prompt.num_rows_forwarded == forwarded
    assert session.num_stale > 0  # they were decoded over what was stale then


def test_model_without_marks_continues_the_text_and_regenerates_white_space(
    engine, continuing_model
):
    def open_(policy):
        return engine.open(
            policy, SOURCE[:1500], path="a.py", model=str(continuing_model), policy=policy
        )

    session, fresh = open_("turn"), open_("full")
    assert session.layout_name == "prefix"
    at = SOURCE.index("\n    ", 700) + 5
    session.complete(at, GREEDY, check)
    for one in (session, fresh):
        one.edit([(100, 100, "import os\n")])
    at += len("import os\n")
    expected = fresh.complete(at, GREEDY, check)
    assert fresh.forced_text == "\n    "
    assert not fresh.model.tokenizer.decode(prompt_ids(fresh)).endswith((" ", "\n"))
    session.complete(at, GREEDY, check)
    session.heal(10_000, check)
    assert session.complete(at, GREEDY, check).token_ids == expected.token_ids
    assert_same_prompt(session, fresh)
    pieces = session.model.tokenizer.token_bytes()
    written = b"".join(pieces[token_id] for token_id in expected.token_ids).decode(errors="replace")
    assert written.startswith("\n    " + expected.text[:1])


def test_frozen_layout_keeps_typed_text_after_the_middle_mark(opened):
    session = opened(SOURCE[:1500], "turn", layout="psm")
    session.complete(700, GREEDY, check)
    before = session.prompt.num_rows_forwarded
    session.edit([(700, 700, "x = 1\n")])
    session.complete(706, GREEDY, check)
    assert session.prompt.num_rows_forwarded - before <= 6 + GREEDY.max_tokens
    session.complete(300, GREEDY, check)  # elsewhere: frozen anew
    fresh = opened(session.text, "full", layout="psm")
    fresh.complete(300, GREEDY, check)
    assert_same_prompt(session, fresh)


def test_counts_add_up_and_start_anew(opened):
    session = opened(SOURCE[:1500], "turn")
    session.complete(1200, GREEDY, check)
    counts = session.prompt.take_counts()
    assert counts.num_recomputed == counts.num_wanted
    session.edit([(1000, 1000, "y = 2\n")])
    session.complete(1206, GREEDY, check)
    counts = session.prompt.take_counts()
    assert counts.num_kept > 0
    assert counts.num_turned > 0
    assert 0 < counts.num_recomputed < 20
    assert counts.num_wanted == (
        counts.num_kept + counts.num_turned + counts.num_repaired + counts.num_recomputed
    )


def test_whole_new_text_reuses_what_is_the_same(opened):
    session = opened(SOURCE[:1500], "turn")
    session.complete(1200, GREEDY, check)
    before = session.prompt.num_rows_forwarded
    session.set_text(SOURCE[:500] + "# one\n" + SOURCE[500:1000] + "# two\n" + SOURCE[1000:1500])
    session.sync(check)
    assert session.prompt.num_rows_forwarded - before < 100


@pytest.mark.parametrize("policy", ["full", "prefix", "turn", "heal"])
def test_interrupted_work_is_resumed_and_ends_the_same(opened, policy):
    fresh = opened(SOURCE[:1500], "full", key="fresh")
    expected = fresh.complete(700, GREEDY, check)
    session = opened(SOURCE[:1500], policy)
    random = np.random.default_rng(1)
    num_interrupted = 0

    def interrupt_sometimes():
        if random.random() < 0.15:
            raise Interrupted("more urgent work")

    session.set_cursor(700)
    while True:
        try:
            session.sync(interrupt_sometimes)
            completion = session.complete(700, GREEDY, interrupt_sometimes)
            break
        except Interrupted:
            num_interrupted += 1
    assert num_interrupted > 3
    assert completion.token_ids == expected.token_ids
    assert_same_prompt(session, fresh)


def test_interrupted_edit_heals_to_the_exact_cache(opened):
    session = opened(SOURCE[:700], "turn")
    session.complete(650, GREEDY, check)
    session.edit([(100, 100, SOURCE[2000:2300]), (400, 500, "")])

    calls = []

    def interrupt_in_the_second_chunk():
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("more urgent work")

    with pytest.raises(Interrupted):
        session.sync(interrupt_in_the_second_chunk)
    session.complete(850, GREEDY, check)
    session.heal(10_000, check)
    fresh = opened(session.text, "full", key="fresh")
    fresh.complete(850, GREEDY, check)
    assert_close(
        session.prompt.score([1, 2], check), fresh.prompt.score([1, 2], check), torch.float32
    )


def test_scoring_leaves_the_session_as_it_was(opened):
    session = opened(SOURCE[:800], "turn")
    completion = session.complete(400, GREEDY, check)
    rows, fresh_rows = cache_of(session).num_rows, cache_of(session).num_fresh
    first = session.prompt.score(completion.token_ids, check)
    assert first.argmax(-1).tolist() == list(completion.token_ids)
    assert (cache_of(session).num_rows, cache_of(session).num_fresh) == (rows, fresh_rows)
    assert torch.equal(session.prompt.score(completion.token_ids, check), first)


def test_budget_drops_the_least_recently_used_cache_and_nothing_is_lost(tiny_model):
    engine = new_engine(cache_bytes=1600 * 3 * 2 * 2 * 8 * 4)
    sessions = [
        engine.open(key, SOURCE, path="a.py", model=str(tiny_model), policy="turn")
        for key in range(4)
    ]
    texts = [session.complete(3000, GREEDY, check).text for session in sessions]
    assert engine.status()["cache_bytes"] <= engine.config.cache_bytes
    assert sessions[0].prompt.num_bytes == 0 < sessions[3].prompt.num_bytes
    assert [session.complete(3000, GREEDY, check).text for session in sessions] == texts


def test_window_moves_in_steps_while_typing_far_beyond_it(opened):
    session = opened("", "turn")
    session.set_cursor(0)
    num_moves = 0
    text = (SOURCE * 2)[:12000]
    for start in range(0, len(text), 40):
        piece = text[start : start + 40]
        before = session.num_stale
        session.edit([(start, start, piece)])
        session.sync(check)
        num_moves += session.num_stale > before
        session.heal(10_000, check)
        assert session.prompt.num_tokens <= session.model.window_tokens
    step_chars = session.model.window_tokens / 8
    assert 0 < num_moves < 2 * len(text) / step_chars


@pytest.mark.parametrize("text", ["", "\n", "😀" * 3000, "\ud800", "\r\n" * 10, "x" * 50_000])
@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_odd_texts_complete_at_start_middle_and_end(opened, text, layout):
    session = opened(text, "turn", layout=layout)
    for offset in sorted({0, len(text) // 2, len(text)}):
        completion = session.complete(offset, GREEDY, check)
        assert completion.num_prompt_tokens <= session.model.window_tokens


@pytest.mark.parametrize(
    "edits", [[(5, 3, "")], [(0, 999, "")], [(-1, 2, "")], [(0, 5, ""), (4, 6, "")]]
)
def test_bad_edit_is_an_error_and_changes_nothing(opened, edits):
    session = opened("hello world", "turn")
    with pytest.raises(BadPosition):
        session.edit(edits)
    assert session.text == "hello world"


def test_offset_outside_the_text_is_an_error(opened):
    with pytest.raises(BadPosition, match="12"):
        opened("hello world", "turn").complete(12, GREEDY, check)


def test_unknown_layout_names_what_there_is(opened):
    with pytest.raises(BadRequest, match="spm"):
        opened("", "turn", layout="xyz")


def test_score_without_room_is_an_error_and_changes_nothing(engine, tiny_model):
    cache = DecodingCache(engine.load(str(tiny_model)).decoder, 20, find_policy("turn"), 64)
    cache.set_prompt({("prefix",): np.arange(10)})
    cache.patch(check)
    logits = cache.logits(check)
    for token_id in (1, 2, 3):
        cache.decode(token_id, check)
    with pytest.raises(ContextTooLong):
        cache.score(range(9), check)
    assert sorted(cache.rows.positions) == [*range(13)]
    assert cache.decode(4, check).shape == logits.shape


def test_what_is_assumed_is_taken_as_written_and_what_follows_is_the_same(tiny_model):
    """The next suggestion, computed before the first is accepted, is the one after it."""
    engine = new_engine()
    place = len(SOURCE) // 2
    session = engine.open("a", SOURCE, path="a.py", model=str(tiny_model), policy="full")
    first = session.complete(place, GREEDY, check)
    ahead = session.complete(place, replace(GREEDY, assumed=first.text), check)
    session.edit([(place, place, first.text)])
    after = session.complete(place + len(first.text), GREEDY, check)
    assert ahead.text == after.text
    assert len(ahead.token_ids) >= len(after.token_ids)


def test_candidates_are_what_the_model_writes_after_another_token(tiny_model):
    """Each is the greedy continuation of its own beginning, and none comes twice."""
    engine = new_engine()
    place = len(SOURCE) // 2
    session = engine.open("a", SOURCE, path="a.py", model=str(tiny_model), policy="full")
    alone = session.complete(place, GREEDY, check)
    found = session.complete(place, replace(GREEDY, num_candidates=4), check)
    assert (found.text, found.token_ids) == (alone.text, alone.token_ids)
    texts = [found.text, *found.other_texts]
    assert len(found.other_texts) == len(found.other_stop_reasons) == 3
    assert len({" ".join(text.split()) for text in texts}) == 4
    for text in found.other_texts:
        # All but a few characters at the end are assumed: they are what follows.
        assumed = replace(GREEDY, assumed=text[:-2])
        assert session.complete(place, assumed, check).text.startswith(text[-2:])
    assert session.complete(place, GREEDY, check).text == alone.text


def test_a_number_of_layers_is_what_is_run_and_leaves_no_half_rows(opened) -> None:
    session = opened("a = [1, 2, 3]\nb = ", "turn", key="depth")
    full = session.complete(18, GREEDY, check)
    assert full.num_layers_run == 2.0
    rows = cache_of(session).num_rows
    first = session.complete(18, replace(GREEDY, depth="1"), check)
    assert first.num_layers_run == 1.0
    assert cache_of(session).num_rows == session.prompt.num_tokens < rows
    assert session.complete(18, replace(GREEDY, depth="2"), check).text == full.text
    with pytest.raises(BadRequest, match="a number from 1 to 2"):
        session.complete(18, replace(GREEDY, depth="3"), check)
