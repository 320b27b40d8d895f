"""What is let through while a completion is written is the beginning of what is offered."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.server.trim import Settling, trim

CASES = [
    json.loads(line)
    for path in sorted((Path(__file__).parent / "data").glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
CASES = [case for case in CASES if {"place", "raw", "language", "stop_reason"} <= case.keys()]
STOPS = ("end", "stop", "length", "time", "doubt")
# What rules look at: repetition, the lines around, closers, comments, loops, open blocks.
LINES = [
    *(
        "    x = 1",
        "    return x",
        "x = 1",
        "    pass",
        "",
        "  ",
        "    # why",
        *(
            "# why",
            "        x = 1",
            "        y = 2",
            "            z = 3",
            "\ta = 1",
            "\t\tb = 2",
            "else:",
        ),
        "    if x:",
    ),
    *("    f(", "    f(a)", ")", "    )", "}", "  }", "  return 1;", "  if (a) {", "]", "    ]"),
    *("    aaaa", "    x = '----'", "    ababababab", "    total = total + 1", "    'x", '    """'),
    *("    y = [1, 2,", "        3]", "    é = 2", "    x  ", "    x_x_x_x_x_x_x_x_x_x_x_x_x = 1"),
]
PLACES = [
    ("python", "def f(x):\n‸\n"),
    ("python", "def f(x):\n    x = 1\n    x = 1\n    ‸\n\ndef g():\n    pass\n"),
    ("python", "def f(x):\n    y = ‸\n    return x\n"),
    ("python", "def f(x):\n    f(\n‸\n    )\n"),
    ("python", "# what\n# ‸\nx = 1\n"),
    ("python", "x = 1\r\n‸\r\n    pass\r\n"),
    ("python", "x = (‸)\n"),
    ("python", "if (\n‸"),
    ("javascript", "function f() {\n‸\n}\n"),
    ("javascript", "function f() {\n  if (a) {\n    ‸\n  }\n}\n"),
    ("python", "class A:\n    def f(self):\n        if x:\n            y = 1\n        ‸\n"),
    ("python", "if x:\n\t‸\n"),
    ("sql", "select 1\n‸\n"),
]


def check(place: str, language: str, raw: str, stop_reason: str, pieces=None) -> str:
    """Hold every beginning against the end, and return the longest that was let through."""
    before, after = place.split("‸")
    text, at = before + after, len(before)
    final = trim(raw, text, at, at, stop_reason, language).text
    settling = Settling(text, at, at, language)
    shown = ""
    for end in pieces or range(len(raw) + 1):
        now = settling.settled(raw[:end])
        assert now.startswith(shown)
        shown = now
        assert final.startswith(shown), (raw[:end], shown, final)
    return shown


@pytest.mark.parametrize("stop_reason", STOPS)
def test_golden_cases(stop_reason) -> None:
    for case in CASES:
        check(case["place"], case["language"], case["raw"], stop_reason)


@given(
    st.sampled_from(PLACES),
    st.lists(st.sampled_from(LINES), min_size=1, max_size=12),
    st.sampled_from(STOPS),
    st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_any_lines_in_any_place(place, lines, stop_reason, cut) -> None:
    raw = "\n".join(lines)
    check(place[1], place[0], raw[: len(raw) - cut], stop_reason)


def test_most_whole_lines_of_good_completions_are_let_through_early() -> None:
    offered = shown = 0
    for case in CASES:
        before, after = case["place"].split("‸")
        kept = trim(case["raw"], before + after, len(before), len(before), "end", case["language"])
        if kept.text.count("\n") > 1:
            offered += kept.text.count("\n")
            shown += check(case["place"], case["language"], case["raw"], "end").count("\n") + 1
    assert offered and shown > 0.4 * offered, (shown, offered)


def test_lines_come_one_two_four_at_a_time() -> None:
    raw = "x = 1\n    y = 2\n    z = 3\n    print(x, y)\n    return z\n"
    text = "def f():\n    "
    settling = Settling(text, len(text), len(text), "python")
    seen = {settling.settled(raw[:end]) for end in range(len(raw) + 1)}
    assert sorted(map(len, seen)) == [0, 5, 15, 41]
