--- `:checkhealth keyturn`.

local client = require("keyturn.client")
local config = require("keyturn.config")

local health = vim.health
local M = {}

local WAIT_MS = 3000

local function check_editor()
  local version = tostring(vim.version())
  if vim.fn.has("nvim-0.10") == 1 then
    health.ok("Neovim " .. version)
  else
    health.error("Neovim " .. version .. " is too old", "install 0.10 or newer")
  end
  local drawn = require("keyturn").renderer() == "native" and "vim.lsp.inline_completion"
    or "Keyturn's own ghost text"
  health.info("suggestions are drawn by " .. drawn)
end

local function check_options()
  if vim.fn.exists("#keyturn#FileType") == 0 then
    health.warn("setup was not called", 'add require("keyturn").setup() to init.lua')
  end
  for _, problem in ipairs(config.problems(config.options)) do
    health.error(problem)
  end
  local cmd = config.options.cmd
  if type(cmd) == "function" then
    health.info("cmd is a function")
  elseif vim.fn.executable(cmd[1]) == 1 then
    health.ok("the server is " .. vim.fn.exepath(cmd[1]))
  else
    health.error(cmd[1] .. " is not an executable file", {
      "install keyturn: pipx install keyturn",
      'or name it: require("keyturn").setup({ cmd = { "/path/to/keyturn", "serve" } })',
    })
  end
end

local function check_keys()
  local keymaps = type(config.options.keymaps) == "table" and config.options.keymaps or {}
  for action, key in vim.spairs(keymaps) do
    local now = key and vim.fn.maparg(key, "i", false, true) or {}
    if key and not vim.startswith(now.desc or "", "Keyturn: ") then
      local what = now.rhs or now.desc or "something else"
      health.warn(("%s (%s) is mapped to %s"):format(key, action, what), {
        "map another key to " .. require("keyturn.keys").plug(action),
        "or call setup after the plugin that maps it",
      })
    end
  end
end

local function check_server()
  local running = client.get()
  if not running then
    health.info("the server is not running: it starts with the first buffer of " .. vim.inspect(
      config.options.filetypes
    ) .. "; `keyturn doctor` says whether completion works")
    return
  end
  local version = (running.server_info or {}).version or "unknown"
  health.ok(("the server runs, version %s"):format(version))
  health.info("offsets are counted in " .. running.offset_encoding)
  local reply = client.call(running, "request_sync", "keyturn/status", {}, WAIT_MS, 0)
  local status = reply and reply.result
  if type(status) ~= "table" then
    health.warn("the server does not say how it is", ":Keyturn restart, then :Keyturn log")
    return
  end
  local summary = status.summary or { state = status.state, text = status.state }
  if summary.state == "failed" then
    health.error(summary.text, summary.help)
  else
    health.ok("state: " .. summary.text)
  end
  local reasons = vim.tbl_get(status, "completions", "recent_reasons") or {}
  if #reasons > 0 then health.info("latest reason for no suggestion: " .. reasons[#reasons]) end
end

--- Report what works here, with remedies.
function M.check()
  health.start("keyturn")
  check_editor()
  check_options()
  check_keys()
  check_server()
end

return M
