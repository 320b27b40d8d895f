"""Edits between two texts: they lead from one to the other, and are as small as what happened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.wire.texts import common_prefix
from keyturn.server.http.text_edits import Fingerprint, applied, edits_between

FILE = "".join(
    f"def function_{number}(value):\n    return value + {number}\n" for number in range(99)
)
LINES = FILE.splitlines(keepends=True)
texts = st.text(alphabet="ab\n é😀", max_size=60)
# Windows of one file, with something done to them, as clients send them.
windows = st.tuples(st.integers(0, 150), st.integers(10, 80), st.text("xy\n", max_size=9)).map(
    lambda parts: window(parts[0], parts[1], parts[2])
)


def window(first: int, count: int, typed: str = "", at: int = 0) -> str:
    lines = LINES[first : first + count]
    lines.insert(at or count // 2, typed)
    return "".join(lines)


def size(old: str, new: str) -> int:
    """Return the characters of all edits."""
    return sum(end - start + len(text) for start, end, text in edits_between(old, new))


@given(old=texts | windows, new=texts | windows)
def test_edits_lead_from_one_text_to_the_other(old, new) -> None:
    edits = edits_between(old, new)
    assert applied(old, edits) == new
    assert len(edits) <= 3
    assert bool(edits) == (old != new)
    ends = [len(old), *(start for start, _, _ in edits)]
    assert all(end <= before for (_, end, _), before in zip(edits, ends, strict=False))


@given(old=windows, at=st.integers(0, 2000), typed=st.text("xy\n", min_size=1, max_size=9))
def test_what_was_typed_is_the_whole_edit(old, at, typed) -> None:
    at = min(at, len(old))
    assert size(old, old[:at] + typed + old[at:]) == len(typed)


@pytest.mark.parametrize("lines", [1, 3, -1, -3])
def test_a_window_that_slides_costs_the_lines_that_go_and_come(lines) -> None:
    """llama.vim sends 256 lines before the cursor and 64 behind it: every move slides both ends."""
    old, new = window(50, 80), window(50 + lines, 80, "typed\n", at=40)
    low, high = sorted((50, 50 + lines))
    gone_and_come = "".join(LINES[low:high] + LINES[low + 80 : high + 80])
    assert size(old, new) == len(gone_and_come) + len("typed\n")
    assert len(edits_between(old, new)) == 3


def test_common_prefix() -> None:
    assert [common_prefix(*pair) for pair in (("", ""), ("ab", "ac"), ("a", "ab"))] == [0, 1, 1]


@given(first=texts | windows, second=texts | windows)
def test_what_two_texts_share_is_no_more_than_either_has(first, second) -> None:
    one, other = Fingerprint(first), Fingerprint(second)
    assert 0 <= one.num_shared(other) <= min(one.num_chars, other.num_chars)
    assert one.num_shared(one) == one.num_chars


def test_lines_in_common_count_wherever_they_stand() -> None:
    one = Fingerprint(window(0, 80))
    near, far = Fingerprint(window(10, 80)), Fingerprint(window(100, 80))
    renamed = Fingerprint(one.text.replace("function_0", "f").replace("function_30", "g"))
    assert one.num_shared(near) > one.num_chars * 0.8
    assert one.num_shared(renamed) > one.num_chars * 0.9
    assert one.num_shared(far) < one.num_chars / 2
