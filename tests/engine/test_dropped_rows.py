"""Dropped rows that come back: what is computed, what is held, the oracle after healing."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.prompt.dependencies import Dependencies
from keyturn.engine.prompt.dropped_rows import DroppedRows
from keyturn.engine.prompt.edit_plan import SHORTEST_RUN
from keyturn.engine.prompt.repair import RepairLimit, choose, worth

from ..tolerance import assert_close
from .test_kv_cache import new_cache, write
from .test_session import GREEDY, SOURCE, applied, assert_same_prompt, check, new_engine

# Functions of some hundred characters each, no two alike.
FUNCTIONS = [
    f"def rate_{name}(order, {name}_price):\n"
    f"    {name} = order.find('{name}', {number})\n"
    f"    if {name} is None:\n        return {number} * {name}_price\n"
    f"    return [line.{name} - {number * 7} for line in {name}.lines]\n\n\n"
    for number, name in enumerate(("wool", "iron", "salt", "cloth", "timber", "grain", "copper"))
]
TEXT = "import shop\n\n\n" + "".join(FUNCTIONS)
# What a change tears apart is encoded anew on either side of it, and shorter runs are not kept.
AROUND = 2 * SHORTEST_RUN
WINDOW = 400


@pytest.fixture(scope="module")
def engine():
    return new_engine()


@pytest.fixture(scope="module")
def narrow_engine():
    return new_engine(window_tokens=WINDOW)


@pytest.fixture
def opened(engine, tiny_model):
    def open_(text=TEXT, cursor=None, policy="repair", engine=engine, layout="spm"):
        session = engine.open(
            policy, text, path="a.py", model=str(tiny_model), policy=policy, layout=layout
        )
        session.set_cursor(len(text) if cursor is None else cursor)
        session.sync(check)
        session.prompt.logits(check)
        return session

    return open_


def computed(session, act):
    """Do something; return how many rows the patch and the first logits then compute."""
    act()
    before = session.prompt.num_rows_forwarded
    session.sync(check)
    session.prompt.logits(check)
    return session.prompt.num_rows_forwarded - before


def replaced(session, old, new):
    at = session.text.index(old)
    return lambda: session.edit([(at, at + len(old), new)])


def jumped(session, offset):
    return lambda: session.set_cursor(offset)


def assert_heals_to_a_full_prefill(session, opened, cursor, **options):
    full = opened(session.text, cursor, policy="full", **options)
    session.set_cursor(cursor)
    session.sync(check)
    session.prompt.heal(10_000, check)
    session.prompt.drop_generated()
    assert session.num_stale == 0
    assert_same_prompt(session, full)
    scored = session.prompt.score([5, 6, 7], check)
    assert_close(scored, full.prompt.score([5, 6, 7], check), torch.float32)


@pytest.mark.parametrize("policy", ["turn", "repair", "heal"])
def test_undo_of_a_deletion_computes_the_cursor_row_only_and_so_does_every_redo(opened, policy):
    session = opened(policy=policy)
    block = FUNCTIONS[2] + FUNCTIONS[3]
    before = FUNCTIONS[1] + block
    for _ in range(3):
        assert computed(session, replaced(session, before, FUNCTIONS[1])) == 1
        assert computed(session, replaced(session, FUNCTIONS[1], before)) == 1
        assert session.prompt.num_stale == 0  # all is as it was
    assert_heals_to_a_full_prefill(session, opened, len(TEXT))


@pytest.mark.parametrize("policy", ["turn", "repair"])
def test_what_was_pasted_twice_and_cut_comes_back_once(opened, policy):
    session = opened(policy=policy)
    block, at = FUNCTIONS[1], FUNCTIONS[4]
    computed(session, replaced(session, block, ""))
    for _ in range(2):
        computed(session, replaced(session, at, block + at))
    computed(session, replaced(session, block + block, ""))
    behind = FUNCTIONS[2]
    assert computed(session, replaced(session, behind, block + behind)) <= AROUND
    assert session.text == TEXT
    assert_heals_to_a_full_prefill(session, opened, len(TEXT))


def test_undo_puts_back_what_was_repaired_and_healed_in_between(opened):
    session = opened()
    for number, max_healed in enumerate((0, 40, 10_000), 1):
        computed(session, replaced(session, FUNCTIONS[number], ""))
        assert session.prompt.repair(RepairLimit(max_rows=10), check) >= 10
        session.prompt.heal_worthwhile(max_healed, check)
        behind = FUNCTIONS[number + 1]
        assert computed(session, replaced(session, behind, FUNCTIONS[number] + behind)) == 1
        assert session.prompt.repair(RepairLimit(max_rows=1000), check) == 0
        assert session.prompt.num_stale == 0
    assert_heals_to_a_full_prefill(session, opened, len(TEXT))


def test_undo_leads_back_to_what_was_repaired_before_and_not_healed(opened):
    session, limit = opened(), RepairLimit(max_rows=20)
    computed(session, replaced(session, FUNCTIONS[1], ""))
    assert session.prompt.repair(limit, check) >= 20
    num_stale = session.prompt.num_stale
    for added in FUNCTIONS[3], FUNCTIONS[6]:
        computed(session, replaced(session, FUNCTIONS[4], added + FUNCTIONS[4]))
        assert session.prompt.repair(limit, check) >= 20
        undo = replaced(session, added + FUNCTIONS[4], FUNCTIONS[4])
        assert computed(session, undo) == 1
        assert session.prompt.repair(limit, check) == 0
        assert session.prompt.num_stale == num_stale
    assert_heals_to_a_full_prefill(session, opened, len(session.text))


def test_redo_puts_back_long_stretches_that_were_repaired(opened):
    session, limit = opened(), RepairLimit(max_rows=10_000)
    without, with_it = FUNCTIONS[2], FUNCTIONS[1] + FUNCTIONS[2]
    computed(session, replaced(session, with_it, without))
    assert session.prompt.repair(limit, check) >= 3 * SHORTEST_RUN
    computed(session, replaced(session, without, with_it))
    assert computed(session, replaced(session, with_it, without)) == 1
    assert session.prompt.repair(limit, check) == 0


@pytest.mark.parametrize("num_repaired", [0, 60, 10_000])
def test_return_to_a_place_uses_rows_between_those_that_were_repaired_elsewhere(
    opened, num_repaired
):
    near, far = (TEXT.index(FUNCTIONS[number]) for number in (1, 5))
    session = opened(cursor=near)
    computed(session, jumped(session, far))
    session.prompt.repair(RepairLimit(max_rows=num_repaired), check)
    assert computed(session, jumped(session, near)) <= 2
    assert session.prompt.num_stale == 0
    assert_heals_to_a_full_prefill(session, opened, near)


def test_place_that_was_left_is_exact_when_the_cursor_returns(opened):
    near, far = TEXT.index(FUNCTIONS[1]), TEXT.index(FUNCTIONS[6])
    session = opened(cursor=near)
    before = session.prompt.score([5, 6, 7], check)
    computed(session, jumped(session, far))
    computed(session, jumped(session, near))
    assert session.prompt.num_stale == 0
    assert_close(session.prompt.score([5, 6, 7], check), before, torch.float32)


def test_prefix_policy_computes_again_what_returns(opened):
    session = opened(policy="prefix")
    computed(session, replaced(session, FUNCTIONS[2], ""))
    behind = session.text[session.text.index(FUNCTIONS[3]) :]
    num_tokens = len(session.model.tokenizer.encode(behind).token_ids)
    assert computed(session, replaced(session, behind, FUNCTIONS[2] + behind)) > num_tokens
    assert session.prompt.num_dropped_bytes == 0
    assert session.prompt.num_stale == 0


def test_block_cut_here_is_turned_where_it_is_pasted(opened):
    session = opened()
    computed(session, replaced(session, FUNCTIONS[1], ""))
    assert computed(session, replaced(session, FUNCTIONS[5], FUNCTIONS[5] + FUNCTIONS[1])) <= AROUND
    assert_heals_to_a_full_prefill(session, opened, len(session.text))


def test_part_of_a_block_is_turned_when_only_that_is_pasted(opened):
    session = opened()
    computed(session, replaced(session, FUNCTIONS[1] + FUNCTIONS[2], ""))
    num_tokens = session.prompt.num_tokens
    pasted = computed(session, replaced(session, FUNCTIONS[5], FUNCTIONS[5] + FUNCTIONS[2]))
    assert pasted <= AROUND < session.prompt.num_tokens - num_tokens


@pytest.mark.parametrize(("moved", "behind"), [(1, 4), (4, 0)])
def test_moved_function_is_turned_in_the_patch_that_moves_it(opened, moved, behind):
    session = opened()
    others = [part for part in FUNCTIONS if part is not FUNCTIONS[moved]]
    others.insert(others.index(FUNCTIONS[behind]) + 1, FUNCTIONS[moved])
    session.prompt.take_counts()
    num_computed = computed(
        session, lambda: session.set_text("import shop\n\n\n" + "".join(others))
    )
    assert num_computed <= AROUND
    counts = session.prompt.take_counts()
    parts = counts.num_kept, counts.num_turned, counts.num_repaired, counts.num_recomputed
    assert sum(parts) == counts.num_wanted == session.prompt.num_tokens
    assert counts.num_recomputed == num_computed
    assert_heals_to_a_full_prefill(session, opened, len(session.text))


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_return_from_a_jump_within_the_window_computes_a_handful(opened, layout):
    near, far = (TEXT.index(FUNCTIONS[number]) for number in (1, 5))
    session = opened(cursor=near, layout=layout)
    across = len(session.model.tokenizer.encode(TEXT[near:far]).token_ids)
    # What the cursor crosses is never turned.
    assert computed(session, jumped(session, far)) >= across - SHORTEST_RUN
    for offset in (near, far, near):
        assert computed(session, jumped(session, offset)) <= AROUND
    assert_heals_to_a_full_prefill(session, opened, near, layout=layout)


def test_return_from_another_window_computes_a_handful(opened, narrow_engine):
    options = {"engine": narrow_engine}
    session = opened(SOURCE, 2000, **options)
    assert computed(session, jumped(session, 14_000)) > WINDOW / 2
    for offset in (2000, 14_000, 2000):
        assert computed(session, jumped(session, offset)) <= AROUND
    assert_heals_to_a_full_prefill(session, opened, 2000, **options)


def test_returned_rows_owe_as_much_as_those_that_owe_much(opened, monkeypatch):
    session = opened()
    num_tokens = session.prompt.num_tokens
    computed(session, replaced(session, FUNCTIONS[2], ""))
    num_cut = num_tokens - session.prompt.num_tokens
    monkeypatch.setattr(Dependencies, "high_debt", lambda _: 7.0)  # more than any row can owe
    computed(session, replaced(session, FUNCTIONS[5], FUNCTIONS[2] + FUNCTIONS[5]))
    in_debt = np.flatnonzero(session.prompt.dependencies.debt >= 7)
    assert num_cut - AROUND <= len(in_debt) <= num_cut
    chosen = choose(
        session.prompt.rows, worth(session.prompt.dependencies), session.prompt.num_tokens, 10
    )
    assert np.isin(chosen, in_debt).all()


def test_memory_stays_within_its_bound_under_many_jumps(opened, narrow_engine):
    session = opened(SOURCE, 0, engine=narrow_engine)
    bound = 2 * 2 / 3 * session.model.capacity * 3 * 2 * 2 * 8 * 4
    random = np.random.default_rng(0)
    largest = 0
    for offset in random.integers(0, len(SOURCE), 200).tolist():
        session.set_cursor(offset)
        session.sync(check)
        largest = max(largest, session.prompt.num_dropped_bytes)
        assert session.prompt.num_bytes - session.prompt.rows.num_bytes <= bound
    assert largest > bound / 2
    session.drop_cache()
    assert session.prompt.num_bytes == 0


def test_dropped_rows_yield_to_the_rows_of_any_document(tiny_model):
    row_bytes = 3 * 2 * 2 * 8 * 4
    engine = new_engine(cache_bytes=2600 * row_bytes)

    def open_(key):
        session = engine.open(key, SOURCE, path="a.py", model=str(tiny_model), policy="turn")
        for offset in (2000, 14_000, 8000):
            session.set_cursor(offset)
            session.sync(check)
            assert engine.status()["cache_bytes"] <= engine.config.cache_bytes
        return session

    first = open_("first")
    assert first.prompt.num_dropped_bytes > 0
    second = open_("second")
    # Both windows fit, and nothing else.
    assert first.prompt.num_bytes > first.prompt.num_dropped_bytes == 0
    assert second.prompt.num_bytes > 0


def test_nothing_is_copied_or_sought_for_a_key_at_the_cursor(opened, monkeypatch):
    session = opened()
    monkeypatch.setattr(KVCache, "copied", None)
    monkeypatch.setattr(DroppedRows, "find", None)
    for _ in range(3):
        session.complete(len(session.text), GREEDY, check)
        computed(session, lambda: session.edit([(len(session.text), len(session.text), "x")]))
        computed(session, lambda: session.edit([(len(session.text) - 1, len(session.text), "")]))
    assert session.prompt.num_dropped_bytes == 0


def test_only_the_cursor_row_is_computed_when_a_few_tokens_are_undone(opened):
    session = opened()
    for _ in range(3):
        computed(session, lambda: session.edit([(40, 44, "")]))
        assert computed(session, lambda: session.edit([(40, 40, TEXT[40:44])])) == 1
        assert session.prompt.num_stale == 0


def test_no_memory_for_copies_is_no_error(opened, monkeypatch):
    session = opened()
    computed(session, replaced(session, FUNCTIONS[2], ""))
    assert session.prompt.num_dropped_bytes > 0

    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(KVCache, "copied", refuse)
    computed(session, replaced(session, FUNCTIONS[4], ""))
    assert session.prompt.num_dropped_bytes == 0


def black(text):
    """Quotes, trailing commas and wrapped lines, as a formatter would change them."""
    text = text.replace("'", '"')
    text = re.sub(
        r"\(self, (\w+), (\w+)\)", r"(\n        self,\n        \1,\n        \2,\n    )", text
    )
    return re.sub(r"\bif (.{50,}):\n", r"if (\n            \1\n        ):\n", text)


def test_formatter_pass_over_the_whole_file_keeps_most_rows(opened):
    text = SOURCE[7000:10_000]
    formatted = black(text)
    assert formatted.count("\n") > text.count("\n")
    session = opened(text, len(text))
    session.prompt.take_counts()
    computed(session, lambda: session.set_text(formatted))
    counts = session.prompt.take_counts()
    assert counts.num_kept + counts.num_turned >= 0.8 * counts.num_wanted


@settings(deadline=None)
@given(st.data())
def test_what_is_found_has_the_tokens_and_segment_that_are_missing(data):
    """Whatever was dropped and is wanted, of few blocks that come again and again."""
    blocks = [np.arange(20 * block, 20 * block + 20) for block in range(6)]
    some_blocks = st.lists(st.integers(0, 5), min_size=1, max_size=5)
    cache = new_cache(capacity=120)
    cache.add_record("segment", np.int64, -1)
    dropped = DroppedRows(cache)
    for _ in range(data.draw(st.integers(1, 3))):
        tokens = np.concatenate([blocks[block] for block in data.draw(some_blocks)])
        write(cache, cache.append(tokens, np.arange(len(tokens))))
        cache.record("segment")[:] = data.draw(st.integers(0, 1))
        numbers = np.sort(
            data.draw(st.permutations(range(len(tokens))))[data.draw(st.integers(0, 9)) :]
        )
        dropped.keep(cache.by_position()[numbers], numbers, np.zeros(len(numbers), np.float32))
        cache.remove(np.arange(cache.num_rows))
    wanted = np.concatenate([blocks[block] for block in data.draw(some_blocks)])
    segment_of = np.repeat(data.draw(st.permutations([0, 1])), [len(wanted) // 2, len(wanted)])
    missing = np.arange(len(wanted))[data.draw(st.integers(0, 30)) :]
    is_missing = np.isin(np.arange(len(wanted)), missing)
    for piece in dropped.find(missing, wanted, segment_of):
        places = piece.positions
        assert len(places) >= SHORTEST_RUN and (np.diff(places) == 1).all()
        assert len(set(segment_of[places].tolist())) == 1
        assert is_missing[places].all()
        is_missing[places] = False  # nothing twice
        slots = cache.insert(wanted[places], places, piece.rows)
        fresh = new_cache(capacity=120)
        write(fresh, fresh.append(wanted[places], places))
        for layer in (0, 1):
            for ours, theirs in zip(cache.layer(layer), fresh.layer(layer), strict=True):
                assert torch.equal(ours[:, slots[0] :], theirs)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_random_edits_undone_redone_pasted_and_left_heal_to_a_full_prefill(
    opened, narrow_engine, layout
):
    random = np.random.default_rng(1)
    options = {"engine": narrow_engine, "layout": layout}
    for _ in range(12):
        start = int(random.integers(0, len(SOURCE) - 4000))
        text = SOURCE[start : start + int(random.integers(500, 4000))]
        session = opened(text, int(random.integers(0, len(text))), **options)
        past, cut = [text], ["pass\n"]
        for _ in range(int(random.integers(3, 14))):
            at = int(random.integers(0, len(text) + 1))
            end = min(len(text), at + int(random.integers(1, 400)))
            kind = random.choice(["insert", "delete", "undo", "paste", "jump"])
            if kind == "jump":
                session.set_cursor(at)
            elif kind == "undo":
                text = past[int(random.integers(len(past)))]
                session.set_text(text)
            else:
                inserted = {"insert": SOURCE[at:end], "delete": "", "paste": cut[-1]}[kind]
                cut += [text[at:end]] if kind == "delete" else []
                edit = [(at, end if kind == "delete" else at, inserted)]
                session.edit(edit)
                text = applied(text, edit)
            past.append(text)
            session.sync(check)
        assert session.text == text
        assert_heals_to_a_full_prefill(
            session, opened, int(random.integers(len(text) + 1)), **options
        )
