-- Recipes in Neovim (0.7 or later). Copy to ~/.config/nvim/plugin/dsr.lua.
--
--   on writing a recipe   `dsr check --json`, shown by vim.diagnostic
--   :DsrCheck             the same now
--   K                     `dsr doc` of the word under the cursor
--   CTRL-X CTRL-O         completion with the names of `dsr doc --json`
--
-- vim.g.dsr_program names the program where it is not `dsr` on the PATH.

local namespace = vim.api.nvim_create_namespace("dsr")

-- By recipe: the buffers that its last check marked. A check also finds mistakes in imports.
local marked = {}

local function program()
  return vim.g.dsr_program or "dsr"
end

-- Runs dsr and calls `done` with its standard output, its standard error and its exit status.
local function run(arguments, directory, done)
  if vim.fn.executable(program()) == 0 then
    vim.notify("there is no program " .. program(), vim.log.levels.ERROR)
    return
  end
  local out, err = {}, {}
  vim.fn.jobstart(vim.list_extend({ program() }, arguments), {
    cwd = directory,
    stdout_buffered = true,
    stderr_buffered = true,
    on_stdout = function(_, lines) out = lines end,
    on_stderr = function(_, lines) err = lines end,
    on_exit = function(_, status)
      done(table.concat(out, "\n"), table.concat(err, "\n"), status)
    end,
  })
end

-- dsr counts columns in characters from 1, Neovim in bytes from 0.
local function byte_column(buffer, line, column)
  if not vim.api.nvim_buf_is_loaded(buffer) then
    return column - 1
  end
  local text = vim.api.nvim_buf_get_lines(buffer, line, line + 1, false)[1] or ""
  local byte = vim.fn.byteidx(text, column - 1)
  return byte < 0 and #text or byte
end

-- The buffer of the file that a fault names, if there is such a file. Imports are named from the
-- recipe's directory; modules of dsr and code at an address are no files.
local function buffer_of(file, path)
  if file == nil or file:match("^dsr:") or file:match("^https?://") then
    return nil
  end
  return vim.fn.bufadd(file:match("^/") and file or vim.fn.fnamemodify(path, ":h") .. "/" .. file)
end

local function diagnostic(fault, buffer)
  local message = table.concat(vim.list_extend({ fault.message }, fault.hints), "\n")
  local item = { lnum = 0, col = 0, code = fault.code, source = "dsr" }
  item.severity = vim.diagnostic.severity.ERROR
  item.message = message
  if buffer then
    item.lnum, item.end_lnum = fault.line - 1, fault.line - 1
    item.col = byte_column(buffer, item.lnum, fault.column)
    item.end_col = byte_column(buffer, item.lnum, fault.end_column)
  elseif fault.file then
    item.message = ("%s:%d:%d: %s"):format(fault.file, fault.line, fault.column, message)
  end
  return item
end

local function show(recipe, path, faults)
  local by_buffer = { [recipe] = {} }
  for _, fault in ipairs(faults) do
    local is_recipe = fault.file == vim.fn.fnamemodify(path, ":t")
    local buffer = is_recipe and recipe or buffer_of(fault.file, path)
    local items = by_buffer[buffer or recipe] or {}
    table.insert(items, diagnostic(fault, buffer))
    by_buffer[buffer or recipe] = items
  end
  for _, buffer in ipairs(marked[recipe] or {}) do
    if by_buffer[buffer] == nil and vim.api.nvim_buf_is_valid(buffer) then
      vim.diagnostic.reset(namespace, buffer)
    end
  end
  marked[recipe] = vim.tbl_keys(by_buffer)
  for buffer, items in pairs(by_buffer) do
    vim.diagnostic.set(namespace, buffer, items)
  end
end

local function check(recipe)
  local path = vim.api.nvim_buf_get_name(recipe)
  local name, directory = vim.fn.fnamemodify(path, ":t"), vim.fn.fnamemodify(path, ":h")
  run({ "check", "--json", name }, directory, function(out, err, status)
    local is_json, faults = pcall(vim.fn.json_decode, out)
    if not is_json or type(faults) ~= "table" then
      -- What keeps dsr from checking at all, such as a damaged lock, is no JSON.
      vim.notify(err ~= "" and err or ("dsr check ended with status " .. status), vim.log.levels.ERROR)
    elseif vim.api.nvim_buf_is_valid(recipe) then
      show(recipe, path, faults)
    end
  end)
end

-- Completion: all names of the reference that begin with the word, each with its signature.
local names

function _G.dsr_omnifunc(find_start, base)
  if find_start == 1 then
    local before = vim.api.nvim_get_current_line():sub(1, vim.api.nvim_win_get_cursor(0)[2])
    return #before - #before:match("[%w_]*$")
  end
  names = names or vim.fn.json_decode(vim.fn.system({ program(), "doc", "--json" }))
  local found = {}
  for _, entry in ipairs(names) do
    if vim.startswith(entry.name, base) then
      table.insert(found, { word = entry.name, menu = entry.signature, info = entry.doc, dup = 1 })
    end
  end
  return found
end

local group = vim.api.nvim_create_augroup("dsr", {})

vim.api.nvim_create_autocmd({ "BufRead", "BufNewFile" }, {
  group = group,
  pattern = "*.rhai",
  callback = function(event)
    vim.bo[event.buf].filetype = "rhai"
    vim.bo[event.buf].commentstring = "// %s"
    vim.bo[event.buf].keywordprg = program() .. " doc"
    vim.bo[event.buf].omnifunc = "v:lua.dsr_omnifunc"
  end,
})

vim.api.nvim_create_autocmd({ "BufRead", "BufWritePost" }, {
  group = group,
  pattern = "*.rhai",
  callback = function(event) check(event.buf) end,
})

vim.api.nvim_create_user_command("DsrCheck", function() check(vim.api.nvim_get_current_buf()) end, {})
