--- Keyturn in Neovim: `require("keyturn").setup()`; see :help keyturn.

local client = require("keyturn.client")
local config = require("keyturn.config")
local ghost = require("keyturn.ghost")
local keys = require("keyturn.keys")
local text = require("keyturn.text")

local api = vim.api
local M = {}

local backend --- @type table?

--- Whether Neovim has inline completion of its own.
--- @return boolean
function M.has_native()
  local module = vim.lsp.inline_completion
  return type(module) == "table" and type(module.enable) == "function"
end

--- Return the name of what draws: "native" or "own".
--- @return string
function M.renderer()
  local wanted = config.options.renderer
  if wanted == "auto" then return M.has_native() and "native" or "own" end
  return wanted
end

local function choose_backend()
  if M.renderer() == "native" then return require("keyturn.native") end
  return require("keyturn.inline")
end

local function follow_buffers(group)
  local function on(events, callback)
    api.nvim_create_autocmd(events, { group = group, callback = callback })
  end
  on("FileType", function(event) client.attach(event.buf) end)
  on("BufEnter", function(event) client.focus(event.buf) end)
  on("BufFilePre", function(event) client.detach(event.buf) end)
  on("BufFilePost", function(event)
    vim.schedule(function() client.attach(event.buf) end)
  end)
  on("VimLeavePre", client.leave)
  on("ColorScheme", ghost.define_highlights)
end

--- Start: attach buffers that are open and that will be, map keys.
--- @param options table? see :help keyturn-options
function M.setup(options)
  if vim.fn.has("nvim-0.10") == 0 then
    vim.notify("Keyturn needs Neovim 0.10 or newer", vim.log.levels.ERROR)
    return
  end
  for _, problem in ipairs(config.take(options)) do
    vim.notify("Keyturn: " .. problem, vim.log.levels.ERROR)
  end
  if config.options.renderer == "native" and not M.has_native() then
    config.options.renderer = "own"
    vim.notify("Keyturn: this Neovim has no vim.lsp.inline_completion; renderer is \"own\" now")
  end
  local group = api.nvim_create_augroup("keyturn", {})
  backend = choose_backend()
  client.on_start = backend.attach
  client.on_refresh = backend.refresh
  client.on_pause = backend.hide
  ghost.define_highlights()
  follow_buffers(group)
  backend.enable(group)
  keys.map(config.options.keymaps)
  client.attach_all()
end

--- Whether a suggestion is on the screen.
--- @return boolean
function M.is_visible() return backend ~= nil and backend.is_visible() end

local function accept(piece) return backend ~= nil and backend.accept(piece) end

--- Accept the suggestion that is shown.
--- @return boolean whether there was one that still fits the text
function M.accept() return accept(text.all) end

--- Accept its first word.
--- @return boolean
function M.accept_word() return accept(text.word) end

--- Accept its first line.
--- @return boolean
function M.accept_line() return accept(text.line) end

--- Show the next candidate.
function M.next()
  if backend then backend.select(1) end
end

--- Show the previous candidate.
function M.previous()
  if backend then backend.select(-1) end
end

--- Take the suggestion off the screen.
function M.dismiss()
  if backend then backend.dismiss() end
end

--- Ask for a suggestion now.
function M.invoke()
  if backend then backend.invoke() end
end

--- Suggest nothing in a buffer, or anywhere.
--- @param bufnr integer? 0 is the current one; everywhere without it
function M.pause(bufnr) client.pause(true, bufnr == 0 and api.nvim_get_current_buf() or bufnr) end

--- Suggest again.
--- @param bufnr integer? 0 is the current one; everywhere without it
function M.resume(bufnr) client.pause(false, bufnr == 0 and api.nvim_get_current_buf() or bufnr) end

--- Start the engine anew, or the server where it has gone.
function M.restart() client.restart() end

--- Return how things stand in a buffer: { state, text, help?, percent? }.
--- @param bufnr integer? the current one by default
--- @return table
function M.status(bufnr) return client.summary(bufnr) end

--- Return a component for a statusline, empty where there are no suggestions.
--- @return string
function M.statusline()
  local now = client.summary()
  return now.state == "off" and "" or "Keyturn: " .. now.text
end

return M
