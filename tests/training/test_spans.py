"""Middles lie in their windows, and where the syntax puts them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.spans import KINDS, LONG, MAX_CHARS, SHORT, SMALL, pick_span
from training.data.syntax import Source

from .compiled_programs import PROGRAMS
from .conftest import PROGRAM, SCRIPT

PYTHON = f'"""Module,\nof two lines, é."""\nimport math\n\n{PROGRAM}\nvalue = max(1, 2)\n'
SOURCES = {
    "py": Source(PYTHON, "py"),
    "ts": Source(SCRIPT, "ts"),
    "tsx": Source(SCRIPT, "tsx"),
    "js": Source(SCRIPT.replace(": number[]", ""), "js"),
    **{language: Source(text, language) for language, text in PROGRAMS.items()},
}
TEXTS = st.text(st.sampled_from("aé😀 \n\t(){}[]=:,.'\"#/*defclass"), min_size=3, max_size=300)


def check_span(source, a, b, mix, seed):
    span = pick_span(random.Random(seed), source, a, b, mix)
    assert span == pick_span(random.Random(seed), source, a, b, mix)
    if span is None:
        return
    kind, start, end = span
    assert a <= start < end <= b
    assert kind in KINDS[1:] and end - start <= max(MAX_CHARS, 1) + 1
    text = source.text
    assert text[a:start] + text[start:end] + text[end:b] == text[a:b]


@given(st.sampled_from(list(SOURCES)), st.data())
@settings(max_examples=300, deadline=None)
def test_span_stays_in_its_window(language, data):
    source = SOURCES[language]
    a = data.draw(st.integers(0, len(source.text) - 3))
    b = data.draw(st.integers(a + 2, len(source.text)))
    mix = data.draw(st.sampled_from([SHORT, LONG, SMALL]))
    check_span(source, a, b, mix, data.draw(st.integers(0, 1000)))


@given(TEXTS, st.sampled_from(list(SOURCES)), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_span_stays_in_any_text(text, language, seed):
    check_span(Source(text, language), 0, len(text), SHORT, seed)


@pytest.mark.parametrize("language", SOURCES)
def test_every_kind_is_found(language):
    source, found = SOURCES[language], set()
    for seed in range(2000):
        if span := pick_span(random.Random(seed), source, 0, len(source.text), SHORT):
            found.add(span.kind)
    missing = set(SHORT) - found
    assert missing <= {"doc", "lines"} or missing <= {"import"}, missing


def test_spans_count_characters_where_bytes_are_more():
    source = SOURCES["ts"]
    start, end = source.spans["expr"][-1]
    assert source.text[start:end] == '{ price, name: this.name, é: "ü" }'


def test_body_begins_after_the_docstring_and_inside_of_braces():
    source = SOURCES["py"]
    ((start, end),) = source.spans["body"]
    assert source.text[start:end].startswith("squares =")
    start, end = SOURCES["ts"].spans["body"][0]
    assert SOURCES["ts"].text[start:end].startswith("let sum") and "}" != source.text[end - 1]


def test_block_of_a_header_lies_inside_of_its_guard():
    source, found, starts = SOURCES["cpp"], set(), set()
    for seed in range(3000):
        span = pick_span(random.Random(seed), source, 0, len(source.text), {"block": 1.0})
        if span is not None and span.kind == "block":
            found.add(source.text[span.start : span.end].strip())
            starts.add(span.start)
    assert any(text.startswith("namespace shop {") for text in found)
    assert source.text.index("SHOP_H") not in starts


def test_statement_that_begins_with_a_star_is_no_comment():
    source, found = SOURCES["c"], set()
    for seed in range(600):
        span = pick_span(random.Random(seed), source, 0, len(source.text), {"line": 1.0})
        assert span is not None
        found.add(source.text[span.start : span.end].strip())
    at = source.text.index("*shop->name = 'a';")
    count = sum(text.startswith("*shop->name") for text in found)
    assert count == 1 and source.text[at : at + 18] in found


@pytest.mark.parametrize("mix", [SHORT, LONG, SMALL])
def test_mix_sums_to_one(mix):
    assert sum(mix.values()) == pytest.approx(1, abs=0.011) and set(mix) <= set(KINDS)
