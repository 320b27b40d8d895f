--- Offsets between what LSP and Neovim count, line ends, and the pieces that are taken one by one.
--- Nothing here looks at a window.

local M = {}

--- Return a text's length in UTF-16 code units.
--- @param text string
--- @return integer
function M.utf16_length(text)
  local _, num_inner = text:gsub("[\128-\191]", "")
  local _, num_long = text:gsub("[\240-\247]", "")
  return #text - num_inner + num_long
end

--- How many units a character takes, by the first of its bytes.
local function units(byte, encoding)
  return encoding == "utf-16" and byte >= 240 and 2 or 1
end

--- Return the byte column of an LSP `character`; behind the line's end it is the end.
--- @param line string
--- @param character integer in units of `encoding`
--- @param encoding "utf-8"|"utf-16"|"utf-32"
--- @return integer
function M.byte_of(line, character, encoding)
  if encoding == "utf-8" then return math.min(character, #line) end
  local num_units = 0
  for at = 1, #line do
    local byte = line:byte(at)
    if byte < 128 or byte >= 192 then
      if num_units >= character then return at - 1 end
      num_units = num_units + units(byte, encoding)
    end
  end
  return #line
end

--- Return the LSP `character` of a byte column.
--- @param line string
--- @param column integer bytes
--- @param encoding "utf-8"|"utf-16"|"utf-32"
--- @return integer
function M.character_of(line, column, encoding)
  local before = line:sub(1, column)
  if encoding == "utf-8" then return #before end
  if encoding == "utf-16" then return M.utf16_length(before) end
  local _, num_inner = before:gsub("[\128-\191]", "")
  return #before - num_inner
end

--- Return a text as the buffer holds it: lines of a `dos` buffer have no carriage returns.
--- @param text string
--- @param fileformat string
--- @return string
function M.as_buffer_text(text, fileformat)
  if fileformat == "dos" then return (text:gsub("\r\n", "\n")) end
  if fileformat == "mac" then return (text:gsub("\r\n?", "\n")) end
  return text
end

--- Return the UTF-16 units of the server's text that stand for a beginning of it as the buffer
--- has it.
--- @param original string the server's text
--- @param beginning string of `as_buffer_text(original)`
--- @return integer
function M.accepted_length(original, beginning)
  local length = M.utf16_length(beginning)
  if original:find("\r\n", 1, true) and not beginning:find("\r", 1, true) then
    local _, num_lines = beginning:gsub("\n", "")
    length = length + num_lines
  end
  return length
end

--- All of a text.
--- @param text string
--- @return string
function M.all(text) return text end

-- White space before it belongs to a word, line ends too: after the colon of a Python `def` the
-- next word is that of the next line. What follows is 'iskeyword' or none of it.
local WORD = [[^\_s*\%(\k\+\|\%(\k\@!\S\)\+\)]]

--- Return the first word of a text with the white space before it.
--- @param text string
--- @return string
function M.word(text)
  local last = vim.fn.matchend(text, WORD)
  return text:sub(1, last > 0 and last or #text)
end

--- Return a text's first line that is not empty, with the line ends before it.
--- @param text string
--- @return string
function M.line(text) return text:match("^\n*[^\n]+") or text end

return M
