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
    "test", 101, 102, 103, ("spm", "psm"), "spm", frozenset({0}), False, False, 0, 3.0, ()
)
BOS = 7


def shown(text, anchor, cursor, template=TEMPLATE, layout="spm", header="", wanted=""):
    window = (0, len(text))
    result = lay_out(text, anchor, cursor, template, layout, window, BOS, header, wanted=wanted)
    parts = []
    for segment in result.segments:
        parts += segment.token_ids if segment.kind == "marks" else [segment.text]
    return parts, result.prompt_end


def test_spm_puts_the_suffix_first():
    assert shown("ab\ncd", 3, 3) == ([101, 102, "cd", 103, "ab\n"], 3)


def test_psm_keeps_typed_text_after_the_middle_mark():
    assert shown("abXYcd", 2, 4, layout="psm") == ([101, "ab", 102, "cd", 103, "XY"], 4)


def test_suffix_begins_with_the_line_end_of_the_cursors_own_line():
    parts, _ = shown("x = \ny", 4, 4)
    assert parts[2] == "\ny"


def test_model_without_marks_continues_the_text_with_white_space_cut_off():
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


def test_edges_lie_on_line_ends():
    text = "\n".join(["some line of text"] * 500)
    start, end = choose_window(text, 4000, 4000, 1600, has_suffix=True)
    assert text[:start].endswith("\n")
    assert text[:end].endswith("\n")


def test_line_longer_than_a_step_is_cut_inside():
    text = "x" * 50_000
    start, end = choose_window(text, 25_000, 25_000, 1600, has_suffix=True)
    assert 25_000 - 1200 <= start < 25_000 < end <= 25_000 + 400


LINES = st.lists(st.sampled_from(["\n", "x", "some words", "y" * 40]), max_size=60).map("".join)


@settings(max_examples=500)
@given(LINES, st.integers(0), st.integers(0, 400))
def test_edges_touch_the_cursor_in_any_budget(text, cursor, budget):
    cursor %= len(text) + 1
    start, end = choose_window(text, cursor, cursor, budget, has_suffix=True)
    assert start <= cursor <= end and end - start <= budget


@settings(max_examples=300)
@given(LINES, st.integers(0), st.integers(0, 30), st.sampled_from(["spm", "psm", None]))
def test_segments_are_the_text_around_the_cursor(text, cursor, tail, layout):
    cursor %= len(text) + 1
    anchor = cursor - min(tail, cursor) if layout == "psm" else cursor
    template = None if layout is None else TEMPLATE
    start, end = choose_window(text, anchor, cursor, 120, has_suffix=layout is not None)
    result = lay_out(text, anchor, cursor, template, layout or "prefix", (start, end), BOS)
    shown = {part.kind: part.text for part in result.segments if part.kind != "marks"}
    assert start <= result.prompt_end <= cursor
    if layout == "psm":
        assert shown["tail"] == text[anchor:cursor]
        assert shown["prefix"] == text[start:anchor]
    else:
        assert shown["prefix"] == text[start : result.prompt_end]
        assert text[result.prompt_end : cursor].strip() == ""
    if template is not None:
        assert shown["suffix"] == text[cursor:end] and result.prompt_end == cursor


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_header_comes_first_for_a_model_that_knows_it(layout):
    template = replace(TEMPLATE, header_ids=(105, 106))
    without = shown("ab\ncd", 3, 3, template, layout)[0]
    assert shown("ab\ncd", 3, 3, template, layout, header="a/b.py")[0] == [*("a/b.py\n", *without)]
    result = lay_out("", 0, 0, replace(template, bos_first=True), layout, (0, 0), BOS, "b.py")
    assert result.segments[0].token_ids == (BOS, 105, 106)
    assert sum(BOS in part.token_ids for part in result.segments) == 1
    assert shown("ab", 1, 1, TEMPLATE, layout, header="b.py") == shown("ab", 1, 1, TEMPLATE, layout)


def test_family_with_one_mark_before_the_suffix_gets_it_once():
    template = replace(TEMPLATE, prefix_id=102, bos_first=True)
    assert shown("ab\ncd", 3, 3, template) == ([BOS, 102, "cd", 103, "ab\n"], 3)


def test_white_space_is_generated_again_by_a_model_that_needs_it():
    template = replace(TEMPLATE, regenerate_white_space=True)
    assert shown("a:\n    \nb", 7, 7, template) == ([101, 102, "\nb", 103, "a:"], 2)
    assert shown("a: b", 2, 3, template, "psm") == ([101, "a:", 102, "b", 103, " "], 3)


@pytest.mark.parametrize("wanted", ["line", "block"])
def test_what_is_wanted_is_said_behind_everything_else(wanted):
    mark = {"line": 111, "block": 112}
    told = replace(TEMPLATE, wanted_ids=tuple(mark.items()))
    templates = {
        ("spm", "psm"): told,
        ("spm",): replace(told, middle_last=True),
        ("psm",): replace(told, regenerate_white_space=True),
    }
    for layouts, template in templates.items():
        for layout in layouts:
            for anchor, cursor in ((3, 3), (2, 4)) if layout == "psm" else ((3, 3),):
                without, end = shown("ab cd", anchor, cursor, template, layout)
                parts = shown("ab cd", anchor, cursor, template, layout, wanted=wanted)
                assert parts == ([*without, mark[wanted]], end)
    # Not of what is cut off and generated again: it stands behind the prompt's last token.
    again = replace(told, regenerate_white_space=True)
    parts, end = shown("a:\n    \nb", 7, 7, again, wanted=wanted)
    assert (parts[-2:], end) == (["a:", mark[wanted]], 2)


def test_model_that_is_not_told_what_is_wanted_sees_the_same():
    for template in (TEMPLATE, None, replace(TEMPLATE, wanted_ids=(("block", 112),))):
        assert shown("ab", 1, 1, template, wanted="line") == shown("ab", 1, 1, template)
