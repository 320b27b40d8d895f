--- The connection with `keyturn serve`: one client for all buffers, what it is told, what it says.

local config = require("keyturn.config")
local said = require("keyturn.status")
local text = require("keyturn.text")

local api = vim.api
local M = {}

local NAME = "keyturn"
-- Changes of this long are one message; a request sends them at once.
local GATHER_CHANGES_MS = 20
-- A server that fails is started again so often, after longer and longer pauses; one that had lived
-- for a while begins anew.
local MAX_RESTARTS = 3
local LONG_LIFE_MS = 60000
local SIGTERM = 15
local ROOT_MARKS = { ".git", "pyproject.toml", "package.json", ".hg" }

--- Called with a place when asking again there is worth it.
M.on_refresh = function(_, _, _) end --- @type fun(bufnr: integer, row: integer, col: integer)
--- Called once for each client.
M.on_start = function(_) end --- @type fun(client: vim.lsp.Client)
--- Called when nothing may be shown any more.
M.on_pause = function() end

local paused_everywhere = false
local paused = {} --- @type table<integer, true>
local num_restarts = 0
local started_ms = 0
local is_leaving = false

-- Neovim 0.10 binds a client's functions to it; later ones take it as `self`.
local takes_self = vim.fn.has("nvim-0.11") == 1

--- Call a function of a client's.
--- @param client vim.lsp.Client
--- @param name string
--- @return any
function M.call(client, name, ...)
  if takes_self then return client[name](client, ...) end
  return client[name](...)
end

--- Return the running client.
--- @return vim.lsp.Client?
function M.get()
  for _, client in ipairs(vim.lsp.get_clients({ name = NAME })) do
    if not M.call(client, "is_stopped") then return client end
  end
  return nil
end

--- Return the client that may be asked about a buffer; nil while that is paused.
--- @param bufnr integer
--- @return vim.lsp.Client?
function M.asks_for(bufnr)
  if paused_everywhere or paused[bufnr] or vim.bo[bufnr].buftype ~= "" then return nil end
  local client = vim.lsp.get_clients({ name = NAME, bufnr = bufnr })[1]
  return client and not M.call(client, "is_stopped") and client or nil
end

--- Tell the server something.
--- @param client_id integer
--- @param method string
--- @param params table
function M.notify(client_id, method, params)
  local client = vim.lsp.get_client_by_id(client_id)
  if client and not M.call(client, "is_stopped") then M.call(client, "notify", method, params) end
end

--- Run a command of the server's that an accepted item carries.
--- @param client_id integer
--- @param command { command: string, arguments: any[]? }?
function M.execute(client_id, command)
  local client = vim.lsp.get_client_by_id(client_id)
  if not client or M.call(client, "is_stopped") or not command then return end
  local params = { command = command.command, arguments = command.arguments }
  M.call(client, "request", "workspace/executeCommand", params, function() end)
end

--- Return the parameters that name the current window's cursor.
--- @param client vim.lsp.Client
--- @param bufnr integer the current buffer
--- @return table
function M.position_params(client, bufnr)
  local row, col = unpack(api.nvim_win_get_cursor(0))
  local line = api.nvim_get_current_line()
  local character = text.character_of(line, col, client.offset_encoding)
  return {
    textDocument = { uri = vim.uri_from_bufnr(bufnr) },
    position = { line = row - 1, character = character },
  }
end

--- Tell the server where the cursor is, so that it can get ready for it.
--- @param bufnr integer the current buffer
function M.cursor(bufnr)
  local client = M.asks_for(bufnr)
  if client then M.call(client, "notify", "keyturn/cursor", M.position_params(client, bufnr)) end
end

-- What the server says.

local function take_status(_, status) said.take(status) end

local LEVELS = { vim.log.levels.ERROR, vim.log.levels.WARN, vim.log.levels.INFO }

local function take_message(_, params)
  local named = vim.startswith(params.message, "Keyturn") and "" or "Keyturn: "
  said.tell(named .. params.message, LEVELS[params.type] or vim.log.levels.DEBUG)
end

local function take_refresh(_, params, context)
  local client = vim.lsp.get_client_by_id(context.client_id)
  local bufnr = api.nvim_get_current_buf()
  if not client or vim.uri_from_bufnr(bufnr) ~= params.textDocument.uri then return end
  local row = params.position.line
  local line = api.nvim_buf_get_lines(bufnr, row, row + 1, false)[1]
  if not line then return end
  M.on_refresh(bufnr, row, text.byte_of(line, params.position.character, client.offset_encoding))
end

--- Return why a buffer gets nothing although there may be a server, or nil.
local function why_not(bufnr)
  local off = said.why_no_file(bufnr)
  if off then return off end
  local is_unnamed = api.nvim_buf_get_name(bufnr) == ""
  if not is_unnamed or M.asks_for(bufnr) or not M.unnamed(bufnr) then return nil end
  return {
    state = "off",
    text = "off: another buffer without a name has suggestions",
    help = "Give this one a name with :file NAME.",
  }
end

--- Return how things stand for a buffer, in words.
--- @param bufnr integer? the current one by default
--- @return keyturn.Summary
function M.summary(bufnr)
  bufnr = bufnr or api.nvim_get_current_buf()
  local off = why_not(bufnr)
  if off then return off end
  if said.trouble then return said.trouble end
  if paused_everywhere or paused[bufnr] then
    local where = paused_everywhere and "everywhere" or "in this buffer"
    return { state = "paused", text = "paused " .. where, help = ":Keyturn resume goes on." }
  end
  return said.latest or { state = "starting", text = "starting" }
end

--- Ask the server how things stand, and hand it on in words.
--- @param answer fun(summary: keyturn.Summary, status: table?)
function M.ask_summary(answer)
  local bufnr = api.nvim_get_current_buf()
  local client = M.asks_for(bufnr)
  if not client then return answer(M.summary(bufnr), nil) end
  M.call(client, "request", "keyturn/status", {}, function(_, status)
    said.keep(status)
    answer(M.summary(bufnr), status)
  end, bufnr)
end

--- Say why a suggestion that was asked for did not come.
--- @param bufnr integer
function M.say_why_nothing(bufnr)
  if bufnr ~= api.nvim_get_current_buf() then return end
  M.ask_summary(function(now, status)
    local reasons = vim.tbl_get(status or {}, "completions", "recent_reasons") or {}
    local has_summary = status and status.summary
    said.say(not has_summary and reasons[#reasons] or now.text)
  end)
end

-- Its life.

--- Return another attached buffer without a name: both have the same URI.
--- @param bufnr integer
--- @return integer?
function M.unnamed(bufnr)
  local client = M.get()
  for _, other in ipairs(client and vim.lsp.get_buffers_by_client_id(client.id) or {}) do
    if other ~= bufnr and api.nvim_buf_get_name(other) == "" then return other end
  end
  return nil
end

local function capabilities()
  return vim.tbl_deep_extend("force", vim.lsp.protocol.make_client_capabilities(), {
    general = { positionEncodings = { "utf-8", "utf-16", "utf-32" } },
    textDocument = { inlineCompletion = { dynamicRegistration = false } },
    experimental = { keyturn = { refresh = true } },
  })
end

--- Tell the server of a folder that it does not know yet.
local function add_folder(client, root)
  local uri = root and vim.uri_from_fname(root)
  local known = client.workspace_folders or {}
  if not uri or vim.iter(known):any(function(one) return one.uri == uri end) then return end
  local folder = { uri = uri, name = root }
  client.workspace_folders = vim.list_extend({ folder }, known)
  local event = { added = { folder }, removed = {} }
  M.call(client, "notify", "workspace/didChangeWorkspaceFolders", { event = event })
end

local function pause_params(is_paused, bufnr)
  local document = bufnr and { uri = vim.uri_from_bufnr(bufnr) }
  return { textDocument = document, paused = is_paused }
end

local function on_attach(client, bufnr)
  add_folder(client, vim.fs.root(bufnr, ROOT_MARKS))
  if paused[bufnr] then M.call(client, "notify", "keyturn/pause", pause_params(true, bufnr)) end
end

local function on_init(client)
  said.trouble = nil
  started_ms = vim.uv.now()
  if paused_everywhere then M.call(client, "notify", "keyturn/pause", pause_params(true)) end
  M.on_start(client)
end

--- The server has ended: start it again, or say what to do.
local function on_exit(code, signal)
  if is_leaving then return end
  vim.schedule(function()
    M.on_pause()
    said.latest = nil
    -- A signal leaves the code at 0. Only SIGTERM is somebody's wish, `client:stop(true)` for one.
    local is_failure = code ~= 0 or (signal ~= 0 and signal ~= SIGTERM)
    local how = is_failure and ("exit code %d, signal %d"):format(code, signal) or "it was stopped"
    said.trouble = {
      state = "failed",
      text = ("the language server has ended (%s)"):format(how),
      help = ":Keyturn restart starts it again; :Keyturn log says more.",
    }
    said.changed()
    if not is_failure then return end
    if vim.uv.now() - started_ms > LONG_LIFE_MS then num_restarts = 0 end
    num_restarts = num_restarts + 1
    if num_restarts <= MAX_RESTARTS then
      vim.defer_fn(M.attach_all, 1000 * 2 ^ (num_restarts - 1))
    else
      said.tell("Keyturn: " .. said.trouble.text .. "; " .. said.trouble.help, vim.log.levels.WARN)
    end
  end)
end

local function is_executable(cmd)
  if type(cmd) == "function" or vim.fn.executable(cmd[1]) == 1 then return true end
  if not said.trouble then
    said.trouble = {
      state = "failed",
      text = ("%s is not an executable file"):format(cmd[1]),
      help = 'Install keyturn, or name it: setup({ cmd = { "/path/to/keyturn", "serve" } }).',
    }
    said.tell("Keyturn: " .. said.trouble.text .. ". " .. said.trouble.help, vim.log.levels.WARN)
    said.changed()
  end
  return false
end

--- Attach a buffer, and start the server with the first; nothing for what is no file of ours.
--- @param bufnr integer
function M.attach(bufnr)
  local options = config.options
  if not api.nvim_buf_is_loaded(bufnr) or why_not(bufnr) or M.asks_for(bufnr) then return end
  if not is_executable(options.cmd) then return end
  local settings = next(options.settings) and options.settings or vim.empty_dict()
  vim.lsp.start({
    name = NAME,
    cmd = options.cmd,
    root_dir = vim.fs.root(bufnr, ROOT_MARKS),
    init_options = settings,
    settings = { keyturn = settings },
    capabilities = capabilities(),
    handlers = {
      ["keyturn/status"] = take_status,
      ["keyturn/refresh"] = take_refresh,
      ["window/showMessage"] = take_message,
    },
    flags = { debounce_text_changes = GATHER_CHANGES_MS },
    on_init = on_init,
    on_attach = on_attach,
    on_exit = on_exit,
  }, {
    bufnr = bufnr,
    reuse_client = function(client, wanted)
      return client.name == wanted.name and not M.call(client, "is_stopped")
    end,
  })
end

--- Attach every buffer that is there.
function M.attach_all()
  for _, bufnr in ipairs(api.nvim_list_bufs()) do
    M.attach(bufnr)
  end
end

--- Let go of a buffer whose name is about to change: the server knows it by the old one.
--- @param bufnr integer
function M.detach(bufnr)
  local client = vim.lsp.get_clients({ name = NAME, bufnr = bufnr })[1]
  if client then vim.lsp.buf_detach_client(bufnr, client.id) end
end

--- Tell the server which buffer is looked at.
--- @param bufnr integer
function M.focus(bufnr)
  local client = M.asks_for(bufnr)
  local document = { uri = vim.uri_from_bufnr(bufnr) }
  if client then M.call(client, "notify", "textDocument/didFocus", { textDocument = document }) end
end

--- Suggest nothing any more, or again.
--- @param is_paused boolean
--- @param bufnr integer? everywhere by default
function M.pause(is_paused, bufnr)
  if bufnr then
    paused[bufnr] = is_paused or nil
  else
    paused_everywhere = is_paused
  end
  local client = M.get()
  if client then M.call(client, "notify", "keyturn/pause", pause_params(is_paused, bufnr)) end
  if is_paused then M.on_pause() end
  said.changed()
end

--- Whether a buffer is paused by itself.
--- @param bufnr integer
--- @return boolean
function M.is_paused(bufnr) return paused[bufnr] == true end

--- Start the engine anew; where the server has gone, that.
function M.restart()
  local client = M.get()
  num_restarts, said.trouble = 0, nil
  if not client then
    said.say("starting the language server")
    return M.attach_all()
  end
  M.call(client, "request", "keyturn/restart", vim.empty_dict(), function(problem)
    said.say(problem and "not restarted: " .. problem.message or "the engine is restarted")
  end)
end

--- The editor ends, and the server with it: that is no failure.
function M.leave() is_leaving = true end

return M
