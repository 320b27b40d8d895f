"""A completion in its place, as a terminal gets it."""

import re

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.server.file_changes import moved, versions
from keyturn.server.shown import Shown
from keyturn.server.terminal import InPlace
from keyturn.server.trim import Trimmed

TEXT = "one\ntwo\nthree\nfour\ndef f():\n    \nseven\neight\nnine\n"
CURSOR = TEXT.index("    \nseven") + 4


def in_place() -> InPlace:
    return InPlace(TEXT, CURSOR, lambda: None)


def test_lines_around_are_numbered_as_if_the_completion_stood_there(capsys) -> None:
    place = in_place()
    place.end("x = 1\n    return x")
    assert capsys.readouterr().out == (
        "  3  │ three\n  4  │ four\n  5  │ def f():\n"
        "  6 +│     x = 1\n  7 +│     return x\n"
        "  8  │ seven\n  9  │ eight\n"
    )


def test_pieces_show_what_the_whole_does(capsys) -> None:
    place = in_place()
    text = "x = 1\r\n    y = 2\r\n    return x"
    place.end(text)
    whole = capsys.readouterr().out
    again = in_place()
    for end in (0, 5, 5, 16, len(text)):
        again.show(text[:end])
    again.end(text)
    assert capsys.readouterr().out == whole


def test_nothing_is_shown_where_nothing_is_suggested(capsys) -> None:
    place = in_place()
    place.show("")
    place.end("")
    assert not place.has_begun
    assert capsys.readouterr().out == ""


def test_what_another_host_answered_is_shown_whole(capsys) -> None:
    place = in_place()
    place.show("a = 1\n    b = 2")
    place.end("c")
    assert capsys.readouterr().out.endswith("  6 +│     c\n  7  │ seven\n  8  │ eight\n")


def test_rest_of_the_line_stands_behind_the_completion(capsys) -> None:
    InPlace("f()", 2, lambda: None).end("a, b")
    assert capsys.readouterr().out == "  1 +│ f(a, b)\n"


def test_control_characters_do_not_reach_the_terminal(capsys) -> None:
    InPlace("\x1b[2J x = \n", 9, lambda: None).end("'\x1b]0;a\x07\x9b1m\ud800'")
    assert capsys.readouterr().out == "  1 +│ ␛[2J x = '␛]0;a␇�1m?'\n"


def test_pieces_are_shown_only_when_they_are_certain(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show = Shown(TEXT, CURSOR, "python", lambda languages: "python" in languages, as_json=False)
    assert capsys.readouterr().out == ""
    show.wrote("x = 1\n    retu", ("sql",))
    assert capsys.readouterr().out == ""
    show.wrote("x = 1\n    retu", ("python",))
    out = capsys.readouterr().out
    assert re.search(r"x = 1\S*$", out) and "retu" not in out
    show.progress("not in the middle of it")
    completion = Completion("", (), 1, 0, 1.0, 1.0, 1, "end", ())
    show.end(completion, Trimmed("x = 1", None), "m")
    out, err = capsys.readouterr()
    assert "seven" in out and err == ""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ab|cd", "abXcd", "abX|cd"),
        ("ab|cd", "Xabcd", "Xab|cd"),
        ("ab|cd", "abcdX", "ab|cdX"),
        ("ab|cd", "bcd", "b|cd"),
        ("ab|cd", "acd", "a|cd"),
        ("ab|cd", "abd", "ab|d"),
        ("ab|cd", "aXYd", "aXY|d"),
        ("ab|cd", "abcd", "ab|cd"),
        ("|", "new", "new|"),
        ("aa|aa", "aaaaa", "aaa|aa"),
        ("x|\n", "x\ny\n", "x\ny|\n"),
    ],
)
def test_a_place_moves_with_the_text_around_it(old, new, expected) -> None:
    at = moved(old.index("|"), old.replace("|", ""), new)
    assert new[:at] + "|" + new[at:] == expected


def test_versions_of_a_file_are_seen_through_renames_and_gaps(tmp_path) -> None:
    path = tmp_path / "a.py"
    path.write_text("one")
    changes = versions(str(path))
    next(changes)
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").replace(path)
    next(changes)
    path.unlink()
    path.write_text("three")
    next(changes)
    assert path.read_text() == "three"
