--- Draws text that is not there: grey, behind the cursor and below its line.

local api = vim.api
local M = {}

M.namespace = api.nvim_create_namespace("keyturn")

local drawn_in --- @type integer?

--- Give the highlight groups their defaults; a colour scheme may have its own.
function M.define_highlights()
  local ghost = vim.fn.hlexists("ComplHint") == 1 and "ComplHint" or "NonText"
  api.nvim_set_hl(0, "KeyturnGhost", { default = true, link = ghost })
  local more = vim.fn.hlexists("ComplHintMore") == 1 and "ComplHintMore" or "MoreMsg"
  api.nvim_set_hl(0, "KeyturnGhostMore", { default = true, link = more })
end

--- Return a line as it is drawn from a screen column on: tabs as wide as they are there.
local function expanded(line, column)
  local parts = vim.split((line:gsub("\r$", "")), "\t", { plain = true })
  local done = parts[1]
  for index = 2, #parts do
    local at = column + vim.fn.strdisplaywidth(done, column)
    done = done .. (" "):rep(vim.fn.strdisplaywidth("\t", at)) .. parts[index]
  end
  return done
end

--- Draw a text at the current window's cursor, in place of what was drawn.
--- @param visible string what is drawn
--- @param covers boolean whether it stands over the rest of the line, else before it
--- @param hint string? a note behind it
function M.draw(visible, covers, hint)
  M.clear()
  local bufnr = api.nvim_get_current_buf()
  local row, col = unpack(api.nvim_win_get_cursor(0))
  local column = vim.fn.strdisplaywidth(api.nvim_get_current_line():sub(1, col))
  local lines = {}
  for index, line in ipairs(vim.split(visible, "\n", { plain = true })) do
    lines[index] = { { expanded(line, index == 1 and column or 0), "KeyturnGhost" } }
  end
  if hint then table.insert(lines[#lines], { " " .. hint, "KeyturnGhostMore" }) end
  api.nvim_buf_set_extmark(bufnr, M.namespace, row - 1, col, {
    virt_text = lines[1],
    virt_text_pos = covers and "overlay" or "inline",
    virt_lines = #lines > 1 and vim.list_slice(lines, 2) or nil,
    hl_mode = "combine",
  })
  drawn_in = bufnr
end

--- Take away what is drawn.
function M.clear()
  if drawn_in and api.nvim_buf_is_valid(drawn_in) then
    api.nvim_buf_clear_namespace(drawn_in, M.namespace, 0, -1)
  end
  drawn_in = nil
end

--- Whether something is drawn.
--- @return boolean
function M.is_drawn() return drawn_in ~= nil end

return M
