if vim.g.loaded_keyturn then return end
vim.g.loaded_keyturn = true

require("keyturn.keys").define()

vim.api.nvim_create_user_command("Keyturn", function(call)
  require("keyturn.command").run(call.fargs)
end, {
  nargs = "+",
  desc = "Keyturn: status, restart, pause, resume, log",
  complete = function(lead, line) return require("keyturn.command").complete(lead, line) end,
})
