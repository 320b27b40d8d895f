--- Neovim 0.12's own inline completion: it asks and draws; ours is what it leaves open.
---
--- It keeps old text on the screen until the next reply comes and would insert it where it was
--- asked for; so acceptance goes through our check, and a reply for another place than the
--- cursor's is dropped before it sees it.

local client = require("keyturn.client")
local suggestion = require("keyturn.suggestion")
local text = require("keyturn.text")

local api = vim.api
local M = {}

local METHOD = "textDocument/inlineCompletion"
local INVOKED = 1

-- What the editor shows, and the place it was asked for.
local last --- @type { place: keyturn.Place, items: table[], client: vim.lsp.Client }?
local visible_in --- @type integer?

--- Let the editor ask again, by the event it waits for.
local function ask_again()
  if api.nvim_get_mode().mode:sub(1, 1) ~= "i" then return end
  pcall(api.nvim_exec_autocmds, "CursorMovedI", { buffer = api.nvim_get_current_buf() })
end

--- See the replies that the editor gets: drop those for another place, and note what is shown.
local function watch_replies(from)
  local request = from.request
  from.request = function(self, method, params, handler, bufnr)
    local is_automatic = method == METHOD and params.context.triggerKind ~= INVOKED
    if not is_automatic or not handler then
      return request(self, method, params, handler, bufnr)
    end
    local place = suggestion.place()
    if not client.asks_for(place.bufnr) then return false end
    return request(self, method, params, function(err, result, context, ...)
      local items = type(result) == "table" and (result.items or result) or {}
      local is_here = vim.deep_equal(suggestion.place(), place)
      last = is_here and #items > 0 and { place = place, items = items, client = from } or nil
      visible_in = last and place.bufnr or nil
      local answer = handler(err, is_here and result or {}, context, ...)
      if last then client.notify(from.id, "textDocument/didShowCompletion", { item = items[1] }) end
      return answer
    end, bufnr)
  end
end

--- Nothing is watched by autocommands of ours but the cursor and the end of insert mode.
--- @param group integer an autocommand group
function M.enable(group)
  api.nvim_create_autocmd("InsertEnter", {
    group = group,
    callback = function() client.cursor(api.nvim_get_current_buf()) end,
  })
  local tick
  api.nvim_create_autocmd("CursorMovedI", {
    group = group,
    callback = function(event)
      local now = api.nvim_buf_get_changedtick(event.buf)
      if now == tick then client.cursor(event.buf) end
      tick = now
    end,
  })
  api.nvim_create_autocmd({ "ModeChanged" }, {
    group = group,
    pattern = "i*:[^i]*",
    callback = function() M.hide() end,
  })
end

--- Switch the editor's inline completion on for a client.
--- @param from vim.lsp.Client
function M.attach(from)
  watch_replies(from)
  vim.lsp.inline_completion.enable(true, { client_id = from.id })
end

--- Return what was shown last as a suggestion that can be checked against the buffer.
local function checked(insert_text)
  if not last then return nil end
  for _, item in ipairs(last.items) do
    if item.insertText == insert_text then return suggestion.new(last.place, item, last.client) end
  end
  return nil
end

--- Whether ghost text is on the screen and still true.
--- @return boolean
function M.is_visible()
  if not last or visible_in ~= api.nvim_get_current_buf() then return false end
  for _, item in ipairs(last.items) do
    local one = suggestion.new(last.place, item, last.client)
    local rest = one and suggestion.rest(one)
    if rest and rest ~= "" then return true end
  end
  return false
end

--- Insert a piece of an item of the editor's.
local function insert(shown, piece)
  local one = checked(shown.insert_text)
  if not one then return end
  local rest = suggestion.rest(one)
  local taken, num_taken = suggestion.insert(one, piece)
  if not taken then return end
  if taken == rest then
    M.hide()
    client.execute(one.client_id, one.item.command)
    return
  end
  local length = text.accepted_length(one.item.insertText, one.text:sub(1, num_taken))
  local params = { item = one.item, acceptedLength = length }
  client.notify(one.client_id, "textDocument/didPartiallyAcceptCompletion", params)
  ask_again()
end

--- Take a piece of what is shown; text that is no longer true is not inserted.
--- @param piece fun(rest: string): string
--- @return boolean whether there was something
function M.accept(piece)
  if not M.is_visible() then return false end
  return vim.lsp.inline_completion.get({
    bufnr = api.nvim_get_current_buf(),
    on_accept = function(shown) insert(shown, piece) end,
  })
end

--- Show another candidate.
--- @param step integer
function M.select(step) vim.lsp.inline_completion.select({ count = step }) end

--- Take the ghost text away.
function M.dismiss()
  M.hide()
  -- What is accepted is taken off the screen first: accepted as nothing.
  vim.lsp.inline_completion.get({ on_accept = function() end })
end

--- Ask now: the editor has no call for it, but what the server gives us it gives the editor too.
function M.invoke()
  local bufnr = api.nvim_get_current_buf()
  local to = client.asks_for(bufnr)
  if not to then return client.say_why_nothing(bufnr) end
  local params = client.position_params(to, bufnr)
  params.context = { triggerKind = INVOKED }
  client.call(to, "request", METHOD, params, function(_, result)
    local items = type(result) == "table" and (result.items or result) or {}
    if #items == 0 then return client.say_why_nothing(bufnr) end
    ask_again()
  end, bufnr)
end

--- Ask again: the server can answer now what it could not before.
--- @param bufnr integer
--- @param row integer
--- @param col integer bytes
function M.refresh(bufnr, row, col)
  local place = suggestion.place()
  if place.bufnr == bufnr and place.row == row and place.col == col then ask_again() end
end

--- Forget what was shown.
function M.hide()
  last, visible_in = nil, nil
end

return M
