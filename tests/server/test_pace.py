"""How somebody types: pauses, bursts of deletions, what was just deleted."""

import pytest

from keyturn.server.activity import Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def typist():
    clock = Clock()
    pace = Pace(clock)

    def type_(text, edits, pause=0.1):
        clock.now += pause
        pace.edited(edits, text)
        for start, end, new in edits:
            text = text[:start] + new + text[end:]
        return text

    return pace, type_, clock


def test_pause_is_longer_than_nine_of_ten_pauses_between_keys_and_has_bounds(typist):
    pace, type_, _ = typist
    assert pace.pause_s(0.075) == 0.15
    text = ""
    for at in range(30):
        text = type_(text, [(at, at, "x")], 0.15)
    assert pace.pause_s(0.075) == pytest.approx(0.15)
    assert pace.pause_s(0.2) == 0.2
    for at in range(30, 80):
        text = type_(text, [(at, at, "x")], 0.9)
    assert pace.pause_s(0.075) == pytest.approx(0.3)
    # Nobody types so slowly: these are no pauses between keys.
    for at in range(80, 130):
        text = type_(text, [(at, at, "x")], 3.0)
    assert pace.pause_s(0.075) == pytest.approx(0.3)


def test_burst_of_deletions_is_one_until_it_is_over(typist):
    pace, type_, clock = typist
    text = "abcdef"
    for end in (6, 5, 4):
        assert not pace.is_deleting
        text = type_(text, [(end - 1, end, "")])
    assert pace.is_deleting
    clock.now += 1
    assert not pace.is_deleting
    text = type_(text, [(2, 3, "")])
    assert pace.is_deleting
    type_(text, [(2, 2, "x")])
    assert not pace.is_deleting


def test_what_was_deleted_is_known_at_its_place_however_it_went(typist):
    pace, type_, _ = typist
    text = "x = foo(1)\n"
    for end in range(10, 4, -1):
        text = type_(text, [(end - 1, end, "")])
    assert text == "x = \n"
    assert pace.was_deleted(4, "foo(1)")
    assert pace.was_deleted(4, "foo(1) + 2")
    assert pace.was_deleted(4, "foo")
    assert not pace.was_deleted(4, "bar(1)")
    assert not pace.was_deleted(3, "foo(1)")
    text = type_(text, [(4, 4, "fo")])
    assert pace.was_deleted(6, "o(1)")
    type_(text, [(6, 6, "x")])
    assert not pace.was_deleted(7, "o(1)")


def test_undo_of_a_deletion_leaves_nothing_deleted(typist):
    pace, type_, _ = typist
    text = type_("a = b + c\n", [(4, 9, "")])
    type_(text, [(4, 4, "b + c")])
    assert not pace.was_deleted(9, "b + c")
    type_("a = b + c\n", [(4, 7, "")])
    assert pace.was_deleted(4, "b +")


def test_undo_of_what_came_at_once_leaves_nothing_deleted(typist):
    pace, type_, _ = typist
    text = type_("except ():\n", [(8, 8, "OSError")])
    text = type_(text, [(15, 15, ", ValueError")])
    text = type_(text, [(15, 27, "")])
    assert not pace.was_deleted(15, ", ValueError")
    text = type_(text, [(8, 15, "")])
    assert not pace.was_deleted(8, "OSError")
    text = type_(text, [(8, 8, "OSError")])
    for end in range(15, 8, -1):  # by backspaces it is unwanted
        text = type_(text, [(end - 1, end, "")])
    assert pace.was_deleted(8, "OSError")


def test_pause_begins_with_the_key_before_the_cursor_and_elsewhere_now(typist):
    pace, type_, clock = typist
    assert pace.left_s(0.2, 0) == 0.2
    type_("ab\n", [(1, 1, "x")])
    clock.now += 0.05
    assert pace.left_s(0.2, 2) == pytest.approx(0.15)
    assert pace.left_s(0.2, 0) == 0.2
    clock.now += 1
    assert pace.left_s(0.2, 2) == 0
