--- One suggestion and the buffer it was made for: what of it is still to come, checked against the
--- text as it is now, and how it gets into it.

local text = require("keyturn.text")

local api = vim.api
local M = {}

-- What an editor may put behind the cursor by itself when an opening one is typed.
local CLOSERS = "^[%)%]}>\"'`]*$"

--- Where the cursor is, and what is around it.
--- @class keyturn.Place
--- @field bufnr integer
--- @field row integer from 0
--- @field col integer bytes
--- @field line string
--- @field num_lines integer

--- @class keyturn.Suggestion
--- @field item table the server's
--- @field client_id integer
--- @field bufnr integer
--- @field row integer where its text begins, from 0
--- @field col integer bytes
--- @field text string all of it, from there on, as the buffer would hold it
--- @field prefix string what stands before it on its line
--- @field replaced string what stood between the cursor and the end of its range
--- @field after string what stood behind its range
--- @field num_lines integer lines of the buffer without it

--- Return the place of the current window's cursor.
--- @return keyturn.Place
function M.place()
  local bufnr = api.nvim_get_current_buf()
  local row, col = unpack(api.nvim_win_get_cursor(0))
  return {
    bufnr = bufnr,
    row = row - 1,
    col = col,
    line = api.nvim_get_current_line(),
    num_lines = api.nvim_buf_line_count(bufnr),
  }
end

--- Return an item as a suggestion for the place where it was asked for.
---
--- Nothing for what cannot be shown there: snippets, ranges over several lines or away from the
--- cursor, texts that do not begin with what they replace before the cursor.
--- @param place keyturn.Place
--- @param item table
--- @param client vim.lsp.Client
--- @return keyturn.Suggestion?
function M.new(place, item, client)
  if type(item.insertText) ~= "string" then return nil end
  local from, to = place.col, place.col
  if item.range then
    local first, last = item.range.start, item.range["end"]
    if first.line ~= place.row or last.line ~= place.row then return nil end
    from = text.byte_of(place.line, first.character, client.offset_encoding)
    to = text.byte_of(place.line, last.character, client.offset_encoding)
  end
  if from > place.col or to < place.col then return nil end
  local whole = text.as_buffer_text(item.insertText, vim.bo[place.bufnr].fileformat)
  if not vim.startswith(whole, place.line:sub(from + 1, place.col)) then return nil end
  return {
    item = item,
    client_id = client.id,
    bufnr = place.bufnr,
    row = place.row,
    col = from,
    text = whole,
    prefix = place.line:sub(1, from),
    replaced = place.line:sub(place.col + 1, to),
    after = place.line:sub(to + 1),
    num_lines = place.num_lines,
  }
end

--- What stands between the cursor and the text behind the suggestion, if it is still known.
local function tail_of(self, behind, rest)
  if not vim.endswith(behind, self.after) then return nil end
  local tail = behind:sub(1, #behind - #self.after)
  if tail == self.replaced or tail == "" then return tail end
  local added = tail:sub(1, #tail - #self.replaced)
  local is_closed = vim.endswith(tail, self.replaced) and added:find(CLOSERS) ~= nil
  return is_closed and rest:find(added, 1, true) and tail or nil
end

--- Return what is still to come of a suggestion at the current window's cursor.
--- @param self keyturn.Suggestion
--- @return string? rest what follows the cursor; nil when the text is another than it was made for
--- @return string? tail what stands behind the cursor and goes when the rest comes
--- @return integer? num_typed bytes of its text that stand in the buffer
function M.rest(self)
  local place = M.place()
  if place.bufnr ~= self.bufnr or place.row < self.row then return nil end
  if place.row == self.row and place.col < self.col then return nil end
  local first = api.nvim_buf_get_lines(self.bufnr, self.row, self.row + 1, false)[1]
  if not first or first:sub(1, self.col) ~= self.prefix then return nil end
  local lines =
    api.nvim_buf_get_text(self.bufnr, self.row, self.col, place.row, place.col, {})
  local typed = table.concat(lines, "\n")
  if not vim.startswith(self.text, typed) then return nil end
  if place.num_lines ~= self.num_lines + #lines - 1 then return nil end
  local rest = self.text:sub(#typed + 1)
  local tail = tail_of(self, place.line:sub(place.col + 1), rest)
  if not tail then return nil end
  return rest, tail, #typed
end

--- Return what of a rest is new to the eye: without the end that stands behind the cursor.
--- @param rest string
--- @param tail string
--- @return string
function M.visible(rest, tail)
  return vim.endswith(rest, tail) and rest:sub(1, #rest - #tail) or rest
end

--- Put a piece of the suggestion at the cursor of the current window.
--- @param self keyturn.Suggestion
--- @param piece fun(rest: string): string a beginning of what is still to come
--- @return string? taken nil when nothing was inserted: the text is another than it was made for
--- @return integer? num_taken bytes of the suggestion's text that stand in the buffer now
function M.insert(self, piece)
  local rest, tail, num_typed = M.rest(self)
  if not rest or rest == "" then return nil end
  local taken = piece(M.visible(rest, tail))
  if taken == M.visible(rest, tail) then taken = rest end
  -- A piece that passes what was put behind the cursor by itself takes its place.
  local num_gone = (taken == rest or taken:find(tail, 1, true)) and #tail or 0
  local row, col = unpack(api.nvim_win_get_cursor(0))
  local lines = vim.split(taken, "\n", { plain = true })
  -- Undo takes it back alone (:help undo-break), and what is typed after it alone too.
  vim.cmd("let &g:undolevels = &g:undolevels")
  api.nvim_buf_set_text(self.bufnr, row - 1, col, row - 1, col + num_gone, lines)
  local last = #lines == 1 and col + #taken or #lines[#lines]
  api.nvim_win_set_cursor(0, { row + #lines - 1, last })
  api.nvim_feedkeys(vim.keycode("<C-g>u"), "ni", false)
  return taken, num_typed + #taken
end

return M
