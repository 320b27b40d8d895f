--- What `setup` takes. Settings of the server have their defaults there.

local M = {}

M.defaults = {
  -- The server.
  cmd = { "keyturn", "serve" },
  -- Where it is attached; "*" is everywhere. What the model was not trained on it leaves alone.
  filetypes = {
    "python", "javascript", "javascriptreact", "typescript", "typescriptreact",
    "go", "rust", "java", "c", "cpp",
  },
  -- Settings of the server that differ from its defaults.
  settings = {},
  -- "native" is vim.lsp.inline_completion, "own" is ours, "auto" takes the first where it is.
  renderer = "auto",
  -- Keys of insert mode; false for none. Where nothing is shown a key does what it did before.
  keymaps = {
    accept = "<Tab>",
    accept_word = "<M-Right>",
    accept_line = "<M-C-Right>",
    next = "<M-]>",
    previous = "<M-[>",
    dismiss = "<C-]>",
    invoke = "<M-Bslash>",
  },
}

M.options = M.defaults

local KINDS = {
  cmd = { table = true, ["function"] = true },
  filetypes = { table = true, string = true },
  settings = { table = true },
  renderer = { string = true },
  keymaps = { table = true, boolean = true },
}

--- Return what is wrong with options, each with its remedy.
--- @param options table
--- @return string[]
function M.problems(options)
  local found = {}
  local function add(...) found[#found + 1] = string.format(...) end
  for name, value in vim.spairs(options) do
    local kinds = KINDS[name]
    if not kinds then
      add("setup knows no option %q; it takes %s", name, table.concat(vim.tbl_keys(KINDS), ", "))
    elseif not kinds[type(value)] then
      local wanted = table.concat(vim.tbl_keys(kinds), " or ")
      add("setup's option %q is %s; make it a %s", name, vim.inspect(value), wanted)
    end
  end
  local renderer = options.renderer or "auto"
  local is_known = vim.list_contains({ "auto", "native", "own" }, renderer)
  if type(renderer) == "string" and not is_known then
    add('setup\'s option "renderer" is %q; make it "auto", "native" or "own"', renderer)
  end
  local keymaps = type(options.keymaps) == "table" and options.keymaps or {}
  for name, key in vim.spairs(keymaps) do
    if M.defaults.keymaps[name] == nil then
      local known = table.concat(vim.tbl_keys(M.defaults.keymaps), ", ")
      add("setup's keymaps know no %q; they are %s", name, known)
    elseif type(key) ~= "string" and key ~= false then
      add("setup's keymap %q is %s; make it a key or false", name, vim.inspect(key))
    end
  end
  return found
end

--- Take options over the defaults; those that are wrong are left out.
--- @param options table?
--- @return string[] problems
function M.take(options)
  options = options or {}
  local problems = M.problems(options)
  local taken = vim.deepcopy(M.defaults)
  for name, value in pairs(options) do
    if KINDS[name] and KINDS[name][type(value)] then
      if name == "keymaps" and type(value) == "table" then
        for action, key in pairs(value) do
          if M.defaults.keymaps[action] and (type(key) == "string" or key == false) then
            taken.keymaps[action] = key
          end
        end
      elseif name == "keymaps" then
        taken.keymaps = value and taken.keymaps or {}
      else
        taken[name] = vim.deepcopy(value)
      end
    end
  end
  M.options = taken
  return problems
end

--- Whether buffers of a filetype get suggestions.
--- @param filetype string
--- @return boolean
function M.wants(filetype)
  local wanted = M.options.filetypes
  if type(wanted) == "string" then return wanted == "*" or wanted == filetype end
  return vim.list_contains(wanted, "*") or vim.list_contains(wanted, filetype)
end

return M
