--- How things stand, in words: what the server said last, and what it cannot say.

local config = require("keyturn.config")

local api = vim.api
local M = {}

--- @class keyturn.Summary
--- @field state string
--- @field text string a line for people
--- @field help string? what to do
--- @field percent number? of what is loaded

--- What the server said last.
M.latest = nil --- @type keyturn.Summary?
--- Why there is no server.
M.trouble = nil --- @type keyturn.Summary?

--- Let statuslines and others know.
function M.changed()
  vim.schedule(function()
    vim.cmd("redrawstatus!")
    api.nvim_exec_autocmds("User", { pattern = "KeyturnStatus", modeline = false })
  end)
end

--- Keep what a status says to people; servers without a summary give a state and a reason.
--- @param status table?
function M.keep(status)
  if type(status) ~= "table" then return end
  local reason = type(status.reason) == "string" and status.reason or nil
  local state = status.state or "starting"
  local has_summary = type(status.summary) == "table"
  M.latest = has_summary and status.summary or { state = state, text = reason or state }
end

--- Take a status that the server sent by itself.
--- @param status table?
function M.take(status)
  M.keep(status)
  M.changed()
end

--- Return why a buffer is none that gets suggestions, or nil.
--- @param bufnr integer
--- @return keyturn.Summary?
function M.why_no_file(bufnr)
  local bo = vim.bo[bufnr]
  if bo.buftype ~= "" then
    return {
      state = "off",
      text = ("off: this is a %s buffer"):format(bo.buftype),
      help = "Suggestions come in buffers of files.",
    }
  end
  if config.wants(bo.filetype) then return nil end
  return {
    state = "off",
    text = ("off: filetype %q is not among `filetypes`"):format(bo.filetype),
    help = 'Add it: require("keyturn").setup({ filetypes = { ... } }), or "*" for all.',
  }
end

--- Show a line that is not kept.
--- @param line string
--- @param highlight string?
function M.say(line, highlight) api.nvim_echo({ { "Keyturn: " .. line, highlight } }, false, {}) end

return M
