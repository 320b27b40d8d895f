"""Golden tests: `|` marks the cursor. Each rule has places where it must cut and must not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.server.trim import trim


def trimmed(marked: str, raw: str, stop_reason: str = "end") -> str:
    cursor = marked.index("|")
    text = marked.replace("|", "", 1)
    result = trim(raw, text, cursor, cursor, stop_reason)
    assert (result.text == "") == (result.reason is not None)
    return result.text


UNTOUCHED = [
    ("x = |\n", "foo(a)"),
    ("print(|)", "foo(a)"),
    ("foo(a, |\nbar()\n", "b)"),
    ("foo(bar(a, |)", "b)"),
    ("def f():|\nx = 1\n", "\n    return 1"),
    ("if (x) {\n  |\n", "foo();\n}"),
    ("function f() {\n  |\n}\n", "if (x) {\n    y();\n  }"),
    ("function f() {\n  |\n}\n", "return 1;\n}\n\nfunction g() {\n  return 2;"),
    ("return |x\n", "not "),
    ("foo|a\n", "data"),
    ("s = |\n", "'it''s'"),
    ("f(|'b')\n", "'a', "),
    ("rows = [|\n]\n", "1, 2"),
    ("    a = next(it)\n    |\n", "a = next(it)"),
    ("    return x\n|\n        return x\n", "    return x"),
    ("if a:\n    |\n}\n", "pass"),
    ("a\n|\nb\nc\n", "b\nd"),
    ("|", "x"),
    ("x = {|}\n", "'a': (1, 2)"),
    ("print(':-)')\nfoo(|)\n", "x"),
]


@pytest.mark.parametrize(("marked", "raw"), UNTOUCHED)
def test_a_good_completion_is_left_alone(marked, raw) -> None:
    assert trimmed(marked, raw) == raw


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        ("print(|)", "x)", "x"),
        ("print(|)", "foo(a))", "foo(a)"),
        ("foo(bar(a, |)", "b))", "b)"),
        ("foo(\n    a, |)\n", "b)", "b"),
        ("if foo(|):\n    pass\n", "x):", "x"),
        ("function f() {\n  |\n}\n", "return 1;\n}", "return 1;"),
        ("class A {\n  f() {\n    |\n  }\n}\n", "return 1;\n  }\n}", "return 1;"),
        ("x = [|]\n", "1, 2]", "1, 2"),
        ('print("|")\n', 'hello")', "hello"),
    ],
)
def test_a_closer_the_suffix_has_is_cut(marked, raw, expected) -> None:
    assert trimmed(marked, raw) == expected


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        ("return |x + 1\n", "self.x + 1", "self."),
        ('x = "|"\n', 'hello"', "hello"),
        ("if |:\n", "x == 1:", "x == 1"),
        ("f(a|, b)\n", "bc", "bc"),
        ("|self.x = 1\n", "self.y = 2\nself.x = 1", "self.y = 2\n"),
    ],
)
def test_the_rest_of_the_line_is_not_written_twice(marked, raw, expected) -> None:
    assert trimmed(marked, raw) == expected


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        ("    |\n    return x\n", "y = 1\n    return x", "y = 1"),
        ("    |\n    return x\n", "return x", ""),
        ("    ret|\n    return x\n", "urn x", ""),
        ("|\n\nb = 2\nc = 3\n", "a = 1\n\nb = 2\nc = 3\n", "a = 1"),
        ("|\r\nb = 2\r\n", "a = 1\nb = 2", "a = 1"),
    ],
)
def test_the_next_lines_of_the_file_are_not_repeated(marked, raw, expected) -> None:
    assert trimmed(marked, raw) == expected


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        ("a = f(1)\nb = f(2)\n|\n", "a = f(1)\nb = f(2)\nc = 3", ""),
        ("x.pop()\nx.pop()\n|\n", "x.pop()", ""),
        ("x.pop()\n|\n", "x.pop()", "x.pop()"),
        ("}\n}\n|\n", "}", "}"),
        ("|\n", "a()\na()\na()\na()", "a()"),
        ("|\n", "a()\na()", "a()\na()"),
        ("|\n", "z\na()\nb()\na()\nb()\na()\nb()", "z\na()\nb()"),
    ],
)
def test_repetition_is_cut(marked, raw, expected) -> None:
    assert trimmed(marked, raw) == expected


def test_nothing_but_what_belongs_below_the_block_is_said_so() -> None:
    text = "class A:\n    def f(self):\n        return 1"
    result = trim("\n\n    def", text, len(text), len(text), "end")
    assert (result.text, "below the block" in (result.reason or "")) == ("", True)


@pytest.mark.parametrize("stop_reason", ["length", "time"])
def test_a_last_line_cut_in_the_middle_is_dropped_from_several(stop_reason) -> None:
    assert trimmed("|\n", "a = 1\nb = 2\nc = ", stop_reason) == "a = 1\nb = 2"


def test_a_line_cut_in_the_middle_stays_below_nothing_but_a_line_end() -> None:
    assert trimmed("def f():|\n", "\n    return so", "length") == "\n    return so"
    assert trimmed("def f():|\n", "\n    return so", "time") == ""


def test_a_single_line_cut_in_the_middle_stays_unless_time_cut_it() -> None:
    assert trimmed("|\n", "a = 1 + so", "length") == "a = 1 + so"
    assert trimmed("|\n", "a = 1 + so", "time") == ""


@pytest.mark.parametrize("stop_reason", ["end", "stop"])
def test_a_finished_last_line_is_kept(stop_reason) -> None:
    assert trimmed("|\n", "a = 1\nb = 2", stop_reason) == "a = 1\nb = 2"


@pytest.mark.parametrize("raw", ["", " ", "\n\n", "\t \r\n"])
def test_white_space_only_is_nothing_with_a_reason(raw) -> None:
    result = trim(raw, "x\n", 1, 1, "end")
    assert result == ("", "the model proposed nothing")


def test_line_ends_follow_the_document() -> None:
    assert trimmed("a\r\n|\r\nb\r\n", "x\ny") == "x\r\ny"
    assert trimmed("a\n|\nb\n", "x\r\ny") == "x\ny"
    assert trimmed("a\r|\rb\r", "x\ny") == "x\ry"


def test_white_space_at_the_end_goes_when_nothing_follows_it() -> None:
    assert trimmed("x = |\n", "1  \n\n") == "1"
    assert trimmed("x = |+ 2\n", "1 ") == "1 "


CODE = st.text("ab()[]{}\"': ,\n\r\t", max_size=30)


@settings(max_examples=300, deadline=None)
@given(CODE, CODE, CODE, st.sampled_from(["end", "stop", "length", "time"]))
def test_nothing_is_ever_added_and_only_the_end_is_cut(before, raw, after, stop_reason) -> None:
    result = trim(raw, before + after, len(before), len(before), stop_reason)
    whole = unified(raw)
    # A space that is there already goes at the start, too.
    assert whole.startswith(unified(result.text)) or (
        before[-1:] in (" ", "\t") and whole.lstrip(" \t").startswith(unified(result.text))
    )
    assert (result.text == "") == (result.reason is not None)


def unified(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_a_flood_of_closers_is_left_alone_in_bounded_time() -> None:
    raw = ")" * 20_000
    assert trimmed("(" * 3000 + "|" + ")" * 3000, raw) == raw


def test_the_cost_does_not_grow_with_the_document() -> None:
    far = "(" * 3_000_000
    assert trimmed(far + "\n" * 5000 + "print(|)" + "\n" * 5000 + far, "x)") == "x"
