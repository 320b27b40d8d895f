--- `:Keyturn status|restart|pause|resume|log`.

local client = require("keyturn.client")
local said = require("keyturn.status")

local api = vim.api
local M = {}

local COMMANDS = {}

--- Say how things stand here, what to do, and what did not fit on the screen's last row.
function COMMANDS.status()
  client.ask_summary(function(now)
    local lines = { { "Keyturn: " .. now.text } }
    if now.help and now.help ~= "" then lines[2] = { "\n" .. now.help, "Comment" } end
    if said.cut and not said.cut:find(now.text, 1, true) then
      table.insert(lines, { "\n" .. said.cut, "WarningMsg" })
    end
    said.cut = nil
    api.nvim_echo(lines, false, {})
  end)
end

function COMMANDS.restart() client.restart() end

local function set_paused(is_paused, where)
  if where == "all" then return client.pause(is_paused) end
  if where ~= nil then
    return said.say(("%q is no place; leave it out for this buffer, or say all"):format(where))
  end
  client.pause(is_paused, api.nvim_get_current_buf())
end

function COMMANDS.pause(where) set_paused(true, where) end

--- Resuming here resumes everywhere too, or nothing would come.
function COMMANDS.resume(where)
  if where ~= "all" then set_paused(false, where) end
  if where == nil or where == "all" then client.pause(false) end
end

--- Open the logs, at their ends: the engine's where there is one, and Neovim's, which has what the
--- server says.
function COMMANDS.log()
  client.ask_summary(function(_, status)
    local engine = status and status.log
    local editor = require("vim.lsp.log").get_filename()
    local paths = { editor, type(engine) == "string" and engine or nil }
    local there = vim.tbl_filter(function(path) return vim.uv.fs_stat(path) ~= nil end, paths)
    for _, path in ipairs(there) do
      vim.cmd.split(vim.fn.fnameescape(path))
      vim.bo.readonly = true
      vim.cmd("normal! G")
    end
    if #there == 0 then said.say("no log yet: " .. table.concat(paths, ", ")) end
  end)
end

--- Run a subcommand.
--- @param arguments string[]
function M.run(arguments)
  local call = COMMANDS[arguments[1]]
  if not call then
    local known = table.concat(vim.fn.sort(vim.tbl_keys(COMMANDS)), ", ")
    return said.say(("there is no %q; there are %s"):format(arguments[1], known), "ErrorMsg")
  end
  call(arguments[2])
end

--- Complete a command line.
--- @param lead string
--- @param line string
--- @return string[]
function M.complete(lead, line)
  local words = vim.split(line, "%s+")
  local found = #words == 2 and vim.fn.sort(vim.tbl_keys(COMMANDS)) or {}
  if #words == 3 and (words[2] == "pause" or words[2] == "resume") then found = { "all" } end
  return vim.tbl_filter(function(one) return vim.startswith(one, lead) end, found)
end

return M
