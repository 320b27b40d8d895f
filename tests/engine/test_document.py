"""A document's text as its editor has it, and as the model is shown it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.prompt.document import Document, shifted
from keyturn.engine.wire.errors import BadPosition

TEXTS = st.text(alphabet="ab\r\n\r\n🎉", max_size=12)


def shown(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


def apply(text, edits):
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), TEXTS), max_size=4))
def test_edits_of_any_line_ends_give_what_a_fresh_document_shows(text, moves):
    document = Document(text)
    for at, length, new in moves:
        start = min(at, len(document.text))
        end = min(start + length, len(document.text))
        before, expected = document.shown, apply(document.text, [(start, end, new)])
        told = document.edit([(start, end, new)])
        assert document.text == expected
        assert document.shown == shown(expected)
        assert apply(before, told) == document.shown


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), TEXTS), max_size=4))
def test_several_edits_at_once_are_those_of_a_fresh_document(text, moves):
    edits, reached = [], 0
    for at, length, new in sorted(moves, key=lambda move: move[:2]):
        start = min(max(at, reached), len(text))
        end = min(start + length, len(text))
        edits.append((start, end, new))
        reached = end
    if len({start for start, *_ in edits}) < len(edits):
        return  # two insertions at one place have no order
    document = Document(text)
    told = document.edit(edits)
    assert document.text == apply(text, edits)
    assert document.shown == shown(document.text)
    assert apply(shown(text), told) == document.shown


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 12), max_size=6))
def test_places_are_told_both_ways(text, places):
    document = Document(text)
    for place in places:
        offset = min(place, len(text))
        inside = text[offset - 1 : offset + 1] == "\r\n" if offset else False
        at = document.shown_offset(offset)
        assert at == len(shown(text[: offset - inside]))
        assert document.text_offset(at) == offset - inside


@pytest.mark.parametrize("before", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", ["\n", "\r\n", "\r"])
def test_converted_line_ends_change_nothing_that_is_shown(before, after):
    lines = ["def f():", "    return 1", "", "🎉 = f()", ""]
    document = Document(before.join(lines))
    assert document.set_text(after.join(lines)) == []
    document = Document(before.join(lines))
    edits, at = [], 0
    for line in lines[:-1]:
        at += len(line)
        edits.append((at, at + len(before), after))
        at += len(before)
    if before != after:
        assert document.edit(edits) == []
    assert document.text == after.join(lines) and document.shown == "\n".join(lines)


def test_half_of_a_line_end_comes_and_goes():
    document = Document("a\nb")
    assert document.edit([(1, 1, "\r")]) == []
    assert document.text == "a\r\nb"
    assert document.edit([(2, 3, "")]) == []  # a lone CR is a line end, too
    assert document.text == "a\rb" and document.shown == "a\nb"
    assert apply("a\nb", document.edit([(1, 2, "")])) == document.shown == "ab"


def test_edit_outside_of_the_text_changes_nothing():
    document = Document("a\r\nb")
    for edit in ((0, 5, ""), (3, 2, ""), (-1, 0, "")):
        with pytest.raises(BadPosition):
            document.edit([edit])
    assert (document.text, document.shown) == ("a\r\nb", "a\nb")


def test_offset_follows_edits():
    edits = [(0, 2, "x"), (5, 5, "yy"), (9, 12, "")]
    assert shifted(5, edits, after_insertion=True) == 6
    assert shifted(5, edits, after_insertion=False) == 4
    assert shifted(10, edits, after_insertion=True) == 10
