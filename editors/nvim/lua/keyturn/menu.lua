--- Completion menus beside which ghost text stands: Neovim's own, nvim-cmp's and blink.cmp's.

local M = {}

--- A plugin's module if it is loaded already; it is never loaded for this.
local function loaded(name)
  local module = package.loaded[name]
  return type(module) == "table" and module or nil
end

--- Ask a function that may not be there.
local function answer(module, name)
  local call = module and module[name]
  if type(call) ~= "function" then return nil end
  local ok, value = pcall(call)
  return ok and value or nil
end

--- Whether a menu is open.
--- @return boolean
function M.is_open()
  return vim.fn.pumvisible() == 1
    or answer(loaded("cmp"), "visible") == true
    or answer(loaded("blink.cmp"), "is_menu_visible") == true
end

--- Whether an entry is chosen in a menu: then the menu's text is what the user looks at.
--- @return boolean
function M.is_chosen()
  if vim.fn.pumvisible() == 1 then return vim.fn.complete_info({ "selected" }).selected >= 0 end
  return answer(loaded("cmp"), "visible") == true
    and answer(loaded("cmp"), "get_active_entry") ~= nil
end

return M
