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
--- The last text of which only the beginning was shown; nil once all of it was.
M.cut = nil --- @type string?

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

--- Whether a text can be shown without a key to go on.
local function fits(line) return vim.fn.strdisplaywidth(line) <= vim.v.echospace end

--- Return as much of a text as the screen's last row takes, and where the rest is.
local function shortened(line)
  line = line:gsub("%s+", " ")
  if fits(line) then return line end
  M.cut = line
  for _, rest in ipairs({ "… :Keyturn status", "…" }) do
    for num_chars = vim.fn.strchars(line) - 1, 1, -1 do
      local kept = vim.fn.strcharpart(line, 0, num_chars) .. rest
      if fits(kept) then return kept end
    end
  end
  return ""
end

--- Show a line that is not kept; what is too long for the screen's last row is in the status.
--- @param line string
--- @param highlight string?
function M.say(line, highlight)
  local whole = "Keyturn: " .. line
  local is_typing = api.nvim_get_mode().mode:find("^[iR]") ~= nil
  api.nvim_echo({ { is_typing and shortened(whole) or whole, highlight } }, false, {})
end

--- Show a text that is kept. A long one would wait for Enter and swallow what is being typed: only
--- its beginning is shown then, and all of it when insert mode is left.
--- @param message string
--- @param level integer? of vim.log.levels
function M.tell(message, level)
  local mode = api.nvim_get_mode().mode
  local is_typing = mode:find("^[iR]") or mode:find("^ni")
  if not is_typing or fits(message) then
    if M.cut == message:gsub("%s+", " ") then M.cut = nil end
    return vim.notify(message, level)
  end
  api.nvim_echo({ { shortened(message), "WarningMsg" } }, false, {})
  api.nvim_create_autocmd("InsertLeave", {
    once = true,
    callback = function()
      vim.schedule(function() M.tell(message, level) end)
    end,
  })
end

return M
