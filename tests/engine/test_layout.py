"""Layouts and the window's edges."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.fim import FimTemplate
from keyturn.engine.layout import choose_window, lay_out

SOURCE = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
TEMPLATE = FimTemplate(
    "test", 101, 102, 103, ("spm", "psm"), "spm", frozenset({0}), False, False, 0, 3.0
)
BOS = 7


def shown(text, anchor, cursor, template=TEMPLATE, layout="spm", window=200):
    result = lay_out(text, anchor, cursor, template, layout, window, 3.0, BOS)
    parts = []
    for segment in result.segments:
        parts += (
            segment.token_ids if segment.kind == "special" else [text[segment.start : segment.end]]
        )
    return parts, result.healed_from


def test_spm_puts_the_suffix_first():
    assert shown("ab\ncd", 3, 3) == ([101, 102, "cd", 103, "ab\n"], 3)


def test_psm_keeps_typed_text_after_the_middle_mark():
    assert shown("abXYcd", 2, 4, layout="psm") == ([101, "ab", 102, "cd", 103, "XY"], 4)


def test_suffix_begins_with_the_line_end_of_the_cursors_own_line():
    parts, _ = shown("x = \ny", 4, 4)
    assert parts[2] == "\ny"


def test_model_without_marks_continues_the_text_with_white_space_healed():
    assert shown("def f():\n    ", 13, 13, template=None) == ([BOS, "def f():"], 8)
    assert shown("def f(", 6, 6, template=None) == ([BOS, "def f("], 6)
    assert shown("  \n ", 4, 4, template=None) == ([BOS, ""], 0)


@settings(max_examples=200)
@given(st.integers(0, len(SOURCE)), st.integers(8, 20_000))
def test_shown_text_touches_the_cursor_and_keeps_to_the_budget(cursor, budget):
    start, end = choose_window(SOURCE, cursor, cursor, budget, has_suffix=True)
    assert 0 <= start <= cursor <= end <= len(SOURCE)
    assert end - start <= budget
    if len(SOURCE) <= budget:
        assert (start, end) == (0, len(SOURCE))


@settings(max_examples=100)
@given(st.integers(1000, len(SOURCE) - 1000), st.sampled_from([1600, 4000, 8000]))
def test_most_of_the_budget_is_used_in_a_long_text(cursor, budget):
    start, end = choose_window(SOURCE * 3, cursor, cursor, budget, has_suffix=True)
    assert end - start >= budget * 0.4
    assert start == 0 or SOURCE[start - 1] == "\n"


def test_edges_move_in_steps_while_typing():
    text, budget, cursor = SOURCE, 4000, 9000
    edges = []
    for _ in range(3000):
        text = text[:cursor] + "x" + text[cursor:]
        cursor += 1
        start, end = choose_window(text, cursor, cursor, budget, has_suffix=True)
        edges.append((start, len(text) - end))
    moves = sum(one != next_ for one, next_ in zip(edges, edges[1:], strict=False))
    assert 3 <= moves <= 3000 / (budget / 8) + 2


def test_what_one_side_does_not_need_goes_to_the_other():
    budget = 4000
    start, end = choose_window(SOURCE, 100, 100, budget, has_suffix=True)
    assert start == 0
    assert end > budget * 0.6
    start, end = choose_window(SOURCE, len(SOURCE), len(SOURCE), budget, has_suffix=True)
    assert end - start > budget * 0.6


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_edges_lie_on_line_ends_whatever_they_are(line_end):
    text = line_end.join(["some line of text"] * 500)
    start, end = choose_window(text, 4000, 4000, 1600, has_suffix=True)
    assert text[:start].endswith(line_end)
    assert text[:end].endswith(line_end)


def test_line_longer_than_a_step_is_cut_inside():
    text = "x" * 50_000
    start, end = choose_window(text, 25_000, 25_000, 1600, has_suffix=True)
    assert 25_000 - 1200 <= start < 25_000 < end <= 25_000 + 400


def test_text_denser_than_expected_can_be_shown_less_of():
    wide = lay_out(SOURCE, 9000, 9000, TEMPLATE, "spm", 1000, 3.0, None)
    narrow = lay_out(SOURCE, 9000, 9000, TEMPLATE, "spm", 1000, 0.75, None)
    assert narrow.segments[-1].start > wide.segments[-1].start
