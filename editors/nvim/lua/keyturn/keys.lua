--- Keys: `<Plug>` mappings that always exist, and the keys of `setup`, which fall back to what they
--- did before where nothing is shown.

local M = {}

local DOES = {
  accept = "Accept the suggestion",
  accept_word = "Accept its first word",
  accept_line = "Accept its first line",
  next = "Next candidate",
  previous = "Previous candidate",
  dismiss = "Dismiss the suggestion",
  invoke = "Ask for a suggestion",
}

--- Return the name of an action's mapping.
--- @param action string
--- @return string
function M.plug(action) return ("<Plug>(keyturn-%s)"):format((action:gsub("_", "-"))) end

--- Define the `<Plug>` mappings. They change the text, so they are no expressions.
function M.define()
  for action, does in pairs(DOES) do
    vim.keymap.set("i", M.plug(action), function() require("keyturn")[action]() end, {
      desc = "Keyturn: " .. does,
    })
  end
end

-- Keys we mapped, and the name under which what they did before is kept.
local mapped = {} --- @type table<string, string>

--- Keep what a key does now under a name of its own; return the name.
local function keep(key, action)
  local before = vim.fn.maparg(key, "i", false, true)
  local name = M.plug(action .. "-fallback")
  if vim.tbl_isempty(before) then
    vim.keymap.set("i", name, key)
    return name
  end
  before.lhs, before.lhsraw, before.lhsrawalt, before.buffer = name, vim.keycode(name), nil, 0
  vim.fn.mapset("i", false, before)
  return name
end

--- Whether an action has something to do: else its key does what it did before.
local function applies(action)
  if action == "invoke" then return true end
  local is_shown = require("keyturn").is_visible()
  -- A menu that is open gets the key that takes; the other keys are ours alone.
  return is_shown and not (action == "accept" and require("keyturn.menu").is_open())
end

--- Map the keys of insert mode.
--- @param keymaps table<string, string|false>
function M.map(keymaps)
  for action, key in pairs(keymaps) do
    if key and mapped[key] ~= action then
      local fallback = keep(key, action)
      mapped[key] = action
      vim.keymap.set("i", key, function()
        return applies(action) and M.plug(action) or fallback
      end, { expr = true, remap = true, desc = "Keyturn: " .. DOES[action] })
    end
  end
end

return M
