"""Golden cases of each rule: places where it must cut, and where it must not."""

import json
from pathlib import Path

import pytest

from keyturn.server.trim import trim

LINES = (Path(__file__).parent / "data" / "rules.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [json.loads(line) for line in LINES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}: {case['place']!r}")
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_what_is_offered(case, line_end) -> None:
    before, after = (part.replace("\n", line_end) for part in case["place"].split("‸"))
    at = len(before)
    kept = trim(case["raw"], before + after, at, at, case["stop_reason"], case["language"])
    text = kept.text if line_end in before + after else kept.text.replace("\n", line_end)
    assert text == case["offered"].replace("\n", line_end), kept.reason
    assert (kept.text == "") == (kept.reason is not None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a\r\nb\n", "\r\nc\n", "\r\n"),
        ("a\r\nb\n", "\nc\r\n", "\n"),
        ("a\r\nb\n", "", "\n"),
        ("a\nb\r\n", "", "\r\n"),
        ("a\nb\r", "", "\r"),
        ("", "", "\n"),
    ],
)
def test_the_line_end_is_that_of_the_neighbourhood(before, after, expected) -> None:
    text = before + after
    assert trim("x\ny", text, len(before), len(before), "end").text == f"x{expected}y"
