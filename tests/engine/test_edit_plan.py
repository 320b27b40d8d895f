"""Matching resident rows to wanted tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.prompt.edit_plan import (
    SHORTEST_RUN,
    Run,
    anchored_runs,
    match_rows,
    moved_rows,
    rows_between,
    stable_order,
)


def plan(old, new, old_segments=None, new_segments=None):
    """Return the resident row of each wanted token, -1 to recompute."""
    source = np.full(len(new), -1)
    for run in match_rows(parts(old, old_segments), parts(new, new_segments)):
        assert (source[run.at : run.at + run.length] == -1).all()
        source[run.at : run.at + run.length] = np.arange(run.source, run.source + run.length)
    return source.tolist()


def parts(tokens, segments):
    segments = [0] * len(tokens) if segments is None else segments
    found = {}
    for token, side in zip(tokens, segments, strict=True):
        found.setdefault(side, []).append(token)
    return {side: np.array(found[side]) for side in found}


def test_everything_is_kept_when_nothing_changed():
    assert plan([1, 2, 3], [1, 2, 3]) == [0, 1, 2]


def test_nothing_matches_when_a_side_is_empty():
    assert plan([], [1, 2]) == [-1, -1]
    assert plan([1, 2], []) == []


LONG = list(range(100, 140))


def test_insertion_moves_what_follows():
    assert plan([1, *LONG], [1, 9, 9, *LONG]) == [0, -1, -1, *range(1, 41)]


def test_deletion_moves_what_follows():
    assert plan([1, 9, 9, *LONG], [1, *LONG]) == [0, *range(3, 43)]


def test_several_edits_recompute_only_what_each_changed():
    old = list(range(100))
    new = [*range(20), 900, *range(21, 50), 901, 902, *range(50, 80), *range(85, 100)]
    source = plan(old, new)
    assert [at for at, row in enumerate(source) if row < 0] == [20, 50, 51, *range(82, 97)]
    assert all(row < 0 or old[row] == new[at] for at, row in enumerate(source))


def test_run_too_short_for_the_sample_is_found_in_a_long_text():
    old = list(range(6000))
    new = [-1, -2, *old[1:3000], *[-3] * 9, *old[3010:3026], *[-4] * 9, *old[3040:5999], -5]
    source = plan(old, new)
    assert [row for row in source if row >= 0] == [
        *range(1, 3000),
        *range(3010, 3026),
        *range(3040, 5999),
    ]


def test_moved_block_costs_itself_in_a_long_text():
    old = list(range(6000))
    new = [-1, *old[1:1000], *old[1100:4000], *old[1000:1100], *old[4000:5999], -2]
    assert sum(row < 0 for row in plan(old, new)) == 102


@given(st.integers(0, 2**31), st.sampled_from([2, 40, 5000]))
def test_moved_blocks_are_not_lost_to_the_sample(seed, vocabulary):
    # Blocks of all sizes that move and texts that repeat: a sample alone would mislead.
    random = np.random.default_rng(seed)
    old = random.integers(0, vocabulary, 4000)
    cuts = np.sort(random.choice(4000, 6, replace=False))
    blocks = np.split(old, cuts)
    new = np.concatenate([[-1], *(blocks[at] for at in random.permutation(len(blocks))), [-2]])
    runs = anchored_runs(old, new)
    found = sum(run.length for run in runs)
    every = sum(run.length for run in anchored_runs(old, new, sample_from=1 << 40))
    assert found >= every - 2 * SHORTEST_RUN * len(blocks)


def test_text_that_crosses_to_the_other_side_is_recomputed():
    old_segments, new_segments = [0] * 20 + [1] * 20, [0] * 22 + [1] * 18
    source = plan(LONG, LONG, old_segments, new_segments)
    assert source == [*range(20), -1, -1, *range(22, 40)]


def test_short_runs_stay_where_they_are_but_are_not_moved():
    assert plan([1, 2, 3, 4], [1, 9, 3, 4]) == [0, -1, 2, 3]
    assert plan([1, 2, 3, 4], [1, 9, 9, 3, 4]) == [0, -1, -1, -1, -1]


def test_chance_agreement_of_two_texts_is_recomputed():
    common = LONG[:15]
    source = plan(
        [*range(30), *common, *range(30, 60)], [*range(60, 99), *common, *range(200, 230)]
    )
    assert set(source) == {-1}


def test_side_that_is_mostly_new_is_recomputed_but_for_what_stays():
    old, new = list(range(100)), [*range(20), *range(500, 600), *range(60, 100)]
    assert plan(old, new) == [*range(20), *[-1] * 140]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), min_size=2, max_size=9))
def test_edits_all_over_a_long_text_recompute_what_is_new(seed, lengths):
    random = np.random.default_rng(seed)
    old = random.integers(0, 1000, 5000)
    starts = np.sort(random.choice(np.arange(0, 5000, 100), len(lengths), replace=False))
    new, num_new, end = [], 0, 0
    for start, length in zip(starts, lengths, strict=True):
        new += old[end:start].tolist()
        if length % 2:
            new += [-1 - num for num in range(num_new, num_new + length)]
            num_new += length
        end = start if length % 3 else start + length
    source = plan(old.tolist(), new + old[end:].tolist())
    assert sum(row < 0 for row in source) == num_new


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 5000), max_size=6),
    st.lists(st.integers(0, 5000), max_size=6),
)
def test_matches_of_long_repetitive_texts_are_equal_tokens_in_order(period, old_marks, new_marks):
    old, new = (np.resize(period, 4000 + 500 * number) for number in range(2))
    for text, marks in ((old, old_marks), (new, new_marks)):
        text[[mark % len(text) for mark in marks]] = 9
    source = np.array(plan(old.tolist(), new.tolist()))
    matched = np.flatnonzero(source >= 0)
    assert (np.diff(source[matched]) > 0).all()
    assert (old[source[matched]] == new[matched]).all()


tokens = st.lists(st.integers(0, 5), max_size=60)


@given(tokens, tokens, st.data())
def test_matches_are_equal_tokens_of_the_same_side_in_order(old, new, data):
    old_segments = sorted(
        data.draw(st.lists(st.integers(0, 2), min_size=len(old), max_size=len(old)))
    )
    new_segments = sorted(
        data.draw(st.lists(st.integers(0, 2), min_size=len(new), max_size=len(new)))
    )
    source = plan(old, new, old_segments, new_segments)
    matched = [(row, at) for at, row in enumerate(source) if row >= 0]
    rows = [row for row, _ in matched]
    assert rows == sorted(set(rows))
    assert all(old[row] == new[at] and old_segments[row] == new_segments[at] for row, at in matched)


@given(tokens, st.integers(0, 60), st.integers(0, 60), tokens)
def test_single_replacement_recomputes_its_own_tokens_and_a_short_rest(old, first, second, new):
    start, end = sorted((min(first, len(old)), min(second, len(old))))
    wanted = old[:start] + new + old[end:]
    num_old = start + len(old) - end
    num_recomputed = sum(row < 0 for row in plan(old, wanted))
    assert num_recomputed < len(new) + 16 or 2 * num_old < len(wanted)


def test_only_rows_out_of_place_are_moved():
    order = np.array([4, 3, 2, 1, 0])
    positions = np.array([9, 8, 2, 1, 0])  # of each slot: after two rows there is a gap of five
    runs = [Run(0, 0, 2), Run(2, 2, 2)]
    assert [found.tolist() for found in moved_rows(runs, order, positions)] == [[1], [3]]
    assert [found.tolist() for found in moved_rows([Run(0, 0, 3)], order, positions)] == [[], []]
    runs = [Run(0, 1, 3), Run(3, 8, 2)]
    assert [found.tolist() for found in moved_rows(runs, order, positions)] == [
        [4, 3, 2],
        [1, 2, 3],
    ]


@given(st.lists(st.integers(0, 40), unique=True), st.data())
def test_moved_rows_are_those_whose_position_differs(positions, data):
    positions = np.array(positions, dtype=np.int64)
    order = np.argsort(positions)
    runs, source, at = [], 0, 0
    while source < len(order):
        length = data.draw(st.integers(1, len(order) - source))
        runs.append(Run(source, at, length))
        source += length + data.draw(st.integers(0, 3))
        at += length + data.draw(st.integers(0, 3))
    expected = {
        int(order[run.source + i]): run.at + i
        for run in runs
        for i in range(run.length)
        if positions[order[run.source + i]] != run.at + i
    }
    slots, targets = moved_rows(runs, order, positions)
    assert dict(zip(slots.tolist(), targets.tolist(), strict=True)) == expected


def test_rows_between_are_all_that_spans_leave_out():
    assert rows_between([], 3).tolist() == [0, 1, 2]
    assert rows_between([(0, 2), (3, 1), (4, 2)], 8).tolist() == [2, 6, 7]
    assert rows_between([(0, 3)], 3).tolist() == []


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([1, 1 << 16, (1 << 16) + 1])))
def test_hashes_are_sorted_stably(values):
    values = np.array(values, dtype=np.uint32)
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()
