"""Layouts and the window's edges."""

import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.prompt.fim import FimTemplate
from keyturn.engine.prompt.layout import choose_window, lay_out

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


LINES = st.lists(
    st.sampled_from(["\r\n", "\n", "\r", "x", "some words", "y" * 40, "\r\r\n", "\n\r"]),
    max_size=60,
).map("".join)


@settings(max_examples=500)
@given(LINES, st.integers(0), st.integers(8, 400))
def test_no_edge_splits_a_crlf(text, cursor, budget):
    cursor %= len(text) + 1
    start, end = choose_window(text, cursor, cursor, budget, has_suffix=True)
    assert start == cursor or not text.startswith("\r\n", start - 1) or start == 0
    assert end == cursor or not text.startswith("\r\n", end - 1)
    assert start <= cursor <= end and end - start <= budget


@settings(max_examples=300)
@given(LINES, st.integers(0), st.integers(0, 30), st.sampled_from(["spm", "psm", None]))
def test_segments_are_the_text_around_the_cursor(text, cursor, tail, layout):
    cursor %= len(text) + 1
    anchor = cursor - min(tail, cursor) if layout == "psm" else cursor
    template = None if layout is None else TEMPLATE
    result = lay_out(text, anchor, cursor, template, layout or "prefix", 40, 3.0, BOS)
    spans = {part.kind: (part.start, part.end) for part in result.segments}
    before = spans["prefix"]
    assert before[0] <= before[1] <= cursor
    if layout == "psm":
        assert spans["tail"] == (anchor, cursor) and before[1] == anchor
    else:
        assert before[1] == result.healed_from
        assert text[before[1] : cursor].strip() == ""
    if template is not None:
        assert spans["suffix"][0] == cursor and result.healed_from == cursor


def test_family_with_one_mark_before_the_suffix_gets_it_once():
    template = replace(TEMPLATE, prefix_id=102, bos_first=True)
    assert shown("ab\ncd", 3, 3, template) == ([BOS, 102, "cd", 103, "ab\n"], 3)


def test_white_space_is_healed_for_a_model_that_needs_it():
    template = replace(TEMPLATE, heal_white_space=True)
    assert shown("a:\n    \nb", 7, 7, template) == ([101, 102, "\nb", 103, "a:"], 2)
    assert shown("a: b", 2, 3, template, "psm") == ([101, "a:", 102, "b", 103, " "], 3)
