"""The Neovim plugin in an editor, for tests, with a server that does what a test says."""

import sys
import time
from pathlib import Path
from typing import Any

from ..nvim import Nvim

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
function settle()
  -- Of two timers the one that ends sooner comes first, and what they schedule in that order,
  -- however slow the machine: what a timer of the plugin's sets off needs another turn, though.
  for _ = 1, 3 do
    local is_over = false
    vim.defer_fn(function() is_over = true end, 25)
    vim.wait(60000, function() return is_over end, 1)
  end
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
        self.nvim.lua("settle()")
        self.ask("test/log")

    @property
    def num_asked(self) -> int:
        self.settle()
        return len(self.sent("textDocument/inlineCompletion"))
