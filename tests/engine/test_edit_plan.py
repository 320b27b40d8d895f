"""Matching resident rows to wanted tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.edit_plan import match_rows


def plan(old, new, old_sides=None, new_sides=None):
    old, new = np.array(old, dtype=np.int64), np.array(new, dtype=np.int64)
    old_sides = np.zeros(len(old), dtype=np.int64) if old_sides is None else np.array(old_sides)
    new_sides = np.zeros(len(new), dtype=np.int64) if new_sides is None else np.array(new_sides)
    return match_rows(old, old_sides, new, new_sides).tolist()


def test_everything_is_kept_when_nothing_changed():
    assert plan([1, 2, 3], [1, 2, 3]) == [0, 1, 2]


def test_nothing_matches_when_a_side_is_empty():
    assert plan([], [1, 2]) == [-1, -1]
    assert plan([1, 2], []) == []


def test_insertion_moves_what_follows():
    assert plan([1, 2, 3, 4], [1, 9, 9, 2, 3, 4]) == [0, -1, -1, 1, 2, 3]


def test_deletion_moves_what_follows():
    assert plan([1, 9, 9, 2, 3], [1, 2, 3]) == [0, 3, 4]


def test_several_edits_recompute_only_what_each_changed():
    old = list(range(100))
    new = [*range(20), 900, *range(21, 50), 901, 902, *range(50, 80), *range(85, 100)]
    source = plan(old, new)
    assert [at for at, row in enumerate(source) if row < 0] == [20, 50, 51]
    assert all(row < 0 or old[row] == new[at] for at, row in enumerate(source))


def test_text_that_crosses_to_the_other_side_is_recomputed():
    source = plan([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1])
    assert source == [0, 1, -1, 3, 4]


def test_chance_matches_of_single_tokens_are_not_turned():
    assert plan([1, 7, 8, 5, 9, 2], [1, 20, 5, 30, 31, 2]) == [0, -1, -1, -1, -1, 5]


tokens = st.lists(st.integers(0, 5), max_size=60)


@given(tokens, tokens, st.data())
def test_matches_are_equal_tokens_of_the_same_side_in_order(old, new, data):
    old_sides = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(old), max_size=len(old))))
    new_sides = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(new), max_size=len(new))))
    source = plan(old, new, old_sides, new_sides)
    matched = [(row, at) for at, row in enumerate(source) if row >= 0]
    rows = [row for row, _ in matched]
    assert rows == sorted(set(rows))
    assert all(old[row] == new[at] and old_sides[row] == new_sides[at] for row, at in matched)


@given(tokens, st.integers(0, 60), st.integers(0, 60), tokens)
def test_single_replacement_recomputes_at_most_its_own_tokens(old, first, second, inserted):
    start, end = sorted((min(first, len(old)), min(second, len(old))))
    new = old[:start] + inserted + old[end:]
    assert sum(row < 0 for row in plan(old, new)) <= len(inserted)
