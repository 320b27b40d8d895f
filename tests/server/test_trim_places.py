"""Places labelled by hand, with what the embedded model wrote there.

`label` says what a programmer would say of the raw text at the place: "good" if it fills the place,
at least with its beginning, "bad" if it does not. `offered` is what should be offered. Texts that
fit but say nothing sensible are left out: trimming cannot tell.
"""

import json
import sys
from pathlib import Path

import pytest

from keyturn.server.trim import trim

CASES = [
    json.loads(line)
    for path in sorted(Path(__file__).parent.glob("data/places*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]


def offered(case: dict[str, str], line_end: str = "\n") -> str:
    before, after = (part.replace("\n", line_end) for part in case["place"].split("‸"))
    at = len(before)
    kept = trim(case["raw"], before + after, at, at, case["stop_reason"], case["language"])
    assert (kept.text == "") == (kept.reason is not None)
    return kept.text


def share_of(label: str, line_end: str) -> float:
    """Return how many of the bad went, or of the good were lost."""
    cases = [case for case in CASES if case["label"] == label]
    wanted = [case["offered"].replace("\n", line_end) for case in cases]
    got = [offered(case, line_end) for case in cases]
    pairs = list(zip(got, wanted, strict=True))
    wrong = [
        (case["place"], text, want)
        for case, (text, want) in zip(cases, pairs, strict=True)
        if text != want and (label == "good" or text != "")
    ]
    sys.stdout.writelines(f"{item}\n" for item in wrong)
    share = len(wrong) / len(cases)
    return share if label == "good" else 1 - share


def test_there_are_enough_places_of_every_language() -> None:
    assert len(CASES) >= 100
    languages = {case["language"] for case in CASES}
    assert languages == {"python", "javascript", "typescript", "typescriptreact"}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_most_of_the_bad_go(line_end) -> None:
    assert share_of("bad", line_end) >= 0.85


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_hardly_any_of_the_good_are_lost(line_end) -> None:
    assert share_of("good", line_end) <= 0.05
