--- Our own ghost text: when the server is asked, what is on the screen, and what becomes of it.
---
--- One request is in flight, the newest; the server decides when it answers. Typing through what is
--- shown needs no request. Whatever is drawn or inserted was checked against the buffer just then.

local client = require("keyturn.client")
local ghost = require("keyturn.ghost")
local menu = require("keyturn.menu")
local suggestion = require("keyturn.suggestion")
local text = require("keyturn.text")

local api = vim.api
local M = {}

local INVOKED, AUTOMATIC = 1, 2
-- One key makes several events, a paste many: they become one request. Waiting for a pause in
-- typing is the server's.
local GATHER_MS = 15

--- @class keyturn.Shown
--- @field list keyturn.Suggestion[]
--- @field index integer
--- @field told table<integer, true> which the server knows to have been shown
--- @field is_counted boolean? whether the candidate's number stands beside it

local shown --- @type keyturn.Shown?
local asked --- @type { client: vim.lsp.Client, id: integer? }?
local seen --- @type string? the place that the last event was about
local seen_tick --- @type integer? the text's version there
local dismissed --- @type string? the place where the user wanted none
local timer = assert(vim.uv.new_timer())

--- Name a place and the text around it: another name, another situation.
local function place_name()
  local bufnr = api.nvim_get_current_buf()
  local row, col = unpack(api.nvim_win_get_cursor(0))
  return ("%d:%d:%d:%d"):format(bufnr, api.nvim_buf_get_changedtick(bufnr), row, col)
end

local function is_inserting() return api.nvim_get_mode().mode:sub(1, 1) == "i" end

--- Let go of the request in flight: its reply will be dropped.
local function cancel()
  timer:stop()
  if asked and asked.id then client.call(asked.client, "cancel_request", asked.id) end
  asked = nil
end

--- Forget what is shown.
local function clear()
  shown = nil
  ghost.clear()
end

--- Return the current suggestion and what of it is still to come; another candidate takes over
--- where what was typed is only its beginning.
local function current()
  if not shown then return nil end
  for step = 0, #shown.list - 1 do
    local index = (shown.index - 1 + step) % #shown.list + 1
    local rest, tail, num_typed = suggestion.rest(shown.list[index])
    if rest and suggestion.visible(rest, tail) ~= "" then
      shown.index = index
      return shown.list[index], rest, tail, num_typed
    end
  end
  return nil
end

--- Draw what is still to come; false when nothing is, or it is no longer true.
local function draw()
  local one, rest, tail = current()
  if not one then return false end
  if menu.is_chosen() then
    ghost.clear()
    return true
  end
  local visible = suggestion.visible(rest, tail)
  local covers = tail ~= "" and one.after == "" and visible == rest
  local hint = shown.is_counted and ("(%d/%d)"):format(shown.index, #shown.list) or nil
  ghost.draw(visible, covers, hint)
  if not shown.told[shown.index] then
    shown.told[shown.index] = true
    client.notify(one.client_id, "textDocument/didShowCompletion", { item = one.item })
  end
  return true
end

--- Take the server's reply to a request.
local function take(place, kind, from, result)
  if not is_inserting() then return end
  local list = {}
  for _, item in ipairs(result and (result.items or result) or {}) do
    local one = suggestion.new(place, item, from)
    if one and suggestion.rest(one) then list[#list + 1] = one end
  end
  clear()
  if #list > 0 then shown = { list = list, index = 1, told = {} } end
  if not (shown and draw()) and kind == INVOKED then client.say_why_nothing(place.bufnr) end
end

--- Ask the server about the cursor's place.
local function ask(kind)
  cancel()
  local bufnr = api.nvim_get_current_buf()
  local to = client.asks_for(bufnr)
  if not is_inserting() or vim.fn.reg_executing() ~= "" then return end
  if not to then
    if kind == INVOKED then client.say_why_nothing(bufnr) end
    return
  end
  local place = suggestion.place()
  local params = client.position_params(to, bufnr)
  params.context = { triggerKind = kind }
  local this = { client = to }
  asked = this
  local function reply(_, result)
    if asked ~= this then return end
    asked = nil
    take(place, kind, to, result ~= vim.NIL and result or nil)
  end
  local method = "textDocument/inlineCompletion"
  local _, id = client.call(to, "request", method, params, reply, bufnr)
  this.id = id
end

--- Follow an event: keep what is still true on the screen, else ask.
local function follow()
  if not client.asks_for(api.nvim_get_current_buf()) then return clear() end
  local name = place_name()
  if name == seen then return end
  seen, dismissed = name, nil
  seen_tick = api.nvim_buf_get_changedtick(0)
  cancel()
  if draw() then return end
  clear()
  timer:start(GATHER_MS, 0, vim.schedule_wrap(function() ask(AUTOMATIC) end))
end

--- Tell the server where the cursor is when it has moved and nothing was typed.
local function move()
  if seen and seen_tick == api.nvim_buf_get_changedtick(0) then
    client.cursor(api.nvim_get_current_buf())
  end
end

--- Follow the editor from now on.
--- @param group integer an autocommand group
function M.enable(group)
  local function on(events, callback, pattern)
    api.nvim_create_autocmd(events, { group = group, pattern = pattern, callback = callback })
  end
  on("InsertEnter", function()
    -- The mode is not insert yet.
    vim.schedule(function()
      if not is_inserting() then return end
      client.cursor(api.nvim_get_current_buf())
      follow()
    end)
  end)
  on("CursorMovedI", function()
    if place_name() == seen then return end
    move()
    follow()
  end)
  on({ "TextChangedI", "TextChangedP" }, function() follow() end)
  -- An entry was chosen, or the menu went: what is hidden meanwhile comes back.
  on({ "CompleteChanged", "CompleteDone" }, function()
    vim.schedule(function()
      if is_inserting() and shown and not draw() then clear() end
    end)
  end)
  local function leave()
    cancel()
    clear()
    seen = nil
  end
  on({ "BufLeave", "WinLeave" }, leave)
  on("ModeChanged", leave, "i*:[^i]*")
end

--- Whether ghost text is on the screen.
--- @return boolean
function M.is_visible() return ghost.is_drawn() and current() ~= nil end

--- Take a piece of what is shown.
--- @param piece fun(rest: string): string
--- @return boolean whether anything was inserted
function M.accept(piece)
  local one, rest, tail = current()
  if not one or not is_inserting() then
    clear()
    return false
  end
  local taken, num_taken = suggestion.insert(one, piece)
  if not taken then
    clear()
    return false
  end
  if taken == rest then
    clear()
    client.execute(one.client_id, one.item.command)
  else
    local beginning = one.text:sub(1, num_taken)
    local length = text.accepted_length(one.item.insertText, beginning)
    local params = { item = one.item, acceptedLength = length }
    client.notify(one.client_id, "textDocument/didPartiallyAcceptCompletion", params)
    if not draw() then clear() end
  end
  return true
end

--- Show another candidate; where there is only one, ask for more.
--- @param step integer
function M.select(step)
  if not shown or #shown.list < 2 then return M.invoke() end
  shown.index = (shown.index - 1 + step) % #shown.list + 1
  shown.is_counted = true
  if not draw() then clear() end
end

--- Take the ghost text away until something is typed or the cursor moves.
function M.dismiss()
  cancel()
  clear()
  seen = place_name()
  dismissed = seen
end

--- Ask now; the answer is shown, or said why there is none.
function M.invoke()
  seen, dismissed = place_name(), nil
  ask(INVOKED)
end

--- Ask again: the server can answer now what it could not before.
--- @param bufnr integer
--- @param row integer
--- @param col integer bytes
function M.refresh(bufnr, row, col)
  local place = suggestion.place()
  local is_here = place.bufnr == bufnr and place.row == row and place.col == col
  if not is_here or not is_inserting() or current() then return end
  if dismissed ~= place_name() then ask(AUTOMATIC) end
end

--- Ours needs nothing of a client.
function M.attach() end

--- Take away what is shown, for instance because it is paused.
function M.hide()
  cancel()
  clear()
end

return M
