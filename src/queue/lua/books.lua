-- Whose an entry is, and the books of the fair order.
--
-- `fair` says of the entries at the right of the queue that were read: the leftmost (`edge`), how many
-- they are (`arranged`) and how many of these each tenant has (`of {tenant}`). Entries to the left of
-- the edge are new. Other programs take from the queue without a word here, so the books only steer
-- the order: the edge is looked for, and where it is gone all is read again.
--
-- They also say when new ones were merged in (`merged`) and the right was arranged (`at`), how many were
-- claimed since (`claimed`), how many were ever read and stayed where they were (`total`), up to which
-- of these tenants that are behind had their turn (`exchanged`), whether the newest of them just had one
-- (`newest`), whether the right is to be arranged in the next step (`due`), whether it was since new ones
-- were merged in (`unmerged`), and how many others took (`lost`).
local FIELDS = {
  'edge', 'arranged', 'merged', 'at', 'claimed', 'total', 'exchanged', 'newest', 'due', 'unmerged',
  'lost',
}

-- So many new entries are read at once, and so far to each side the edge is looked for.
local MOST_NEW, FAR = 1000, 2000
-- Bytes of entries that are read at once, and entries that are looked through at once.
local MOST_BYTES, PAGE = 2097152, 50
-- Of a longer entry only so many characters are noted or searched.
local LONGEST = 4096
local find, match, sub, byte = string.find, string.match, string.sub, string.byte

-- The JSON string that begins with the quote at this place, decoded.
local function string_at(entry, quote)
  local to, is_plain = find(entry, '["\\]', quote + 1), true
  while to and byte(entry, to) == 92 do
    to, is_plain = find(entry, '["\\]', to + 2), false
  end
  local raw = to and sub(entry, quote + 1, to - 1)
  if is_plain or not raw then
    return raw
  end
  local ok, list = pcall(cjson.decode, '["' .. raw .. '"]')
  return ok and list[1] or raw
end

-- The tenant of an entry; an empty name for what is no job. Decoding is dear, so a job of ours, or of a
-- producer in Python, is read where it says it; an entry too long to be decoded is searched.
local function tenant_of(entry)
  local name = match(entry, '^"tenant_id":"([^"\\]*)"', 99)
    or match(entry, '^"tenant_id": "([^"\\]*)"', 103)
  if name then
    return name
  end
  if #entry <= LONGEST then
    local ok, job = pcall(cjson.decode, entry)
    if not ok or type(job) ~= 'table' or type(job.node_id) ~= 'string' then
      return ''
    end
    return type(job.tenant_id) == 'string' and job.tenant_id or 'default'
  end
  local _, key = find(entry, '"tenant_id"', 1, true)
  local _, quote = find(entry, '^%s*:%s*"', key and key + 1 or #entry + 1)
  return quote and string_at(entry, quote) or 'default'
end

local function add(counts, key, number)
  counts[key] = (counts[key] or 0) + number
end

-- What is noted of an entry, to know it again.
local function mark(entry)
  return #entry <= LONGEST and entry or #entry .. ' ' .. sub(entry, 1, LONGEST)
end

-- A number in the books.
local function book(field)
  local number = not misuse(fair) and tonumber(redis.call('HGET', fair, field) or 0) or 0
  return number >= 0 and number < math.huge and math.floor(number) or 0
end

-- Some numbers in the books, by their fields.
local function books_of(fields)
  local numbers = {}
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    for i, value in ipairs(redis.pcall('HMGET', fair, unpack(fields, first, last))) do
      local number = value and tonumber(value)
      numbers[fields[first + i - 1]] = number and number < math.huge and number or nil
    end
  end
  return numbers
end

-- A server that is out of memory refuses to add, unless the script has written before.
local function begin_writing()
  if not misuse(fair) then
    redis.call('HDEL', fair, '')
  end
end

-- Changes numbers in the books. None stays that is not above zero.
local function count(changes)
  local fields, kept, gone = {}, {}, {}
  for field in pairs(changes) do
    fields[#fields + 1] = field
  end
  local numbers = books_of(fields)
  for _, field in ipairs(fields) do
    local left = math.floor((numbers[field] or 0) + changes[field])
    if left > 0 then
      kept[#kept + 1] = field
      kept[#kept + 1] = integer(left)
    else
      gone[#gone + 1] = field
    end
  end
  push('HSET', fair, kept)
  push('HDEL', fair, gone)
end

-- Where the edge is, counted from the left: so many entries are new. nil if that is not known.
local function unread(length)
  local edge = not misuse(fair) and redis.call('HGET', fair, 'edge')
  if not edge then
    return nil
  end
  local expected = length - book('arranged')
  local at = math.max(expected, 0)
  local entry = redis.call('LINDEX', queue, at)
  if at == expected and entry and mark(entry) == edge then
    return at
  end
  -- Another program took jobs from the right, or put some there.
  local bytes = 0
  for _, step in ipairs({PAGE, -PAGE}) do
    local first = step > 0 and at or at - PAGE
    while math.abs(first - at) <= FAR and first > -PAGE and bytes < MOST_BYTES do
      local page = redis.call('LRANGE', queue, math.max(first, 0), first + PAGE - 1)
      for i, found in ipairs(page) do
        bytes = bytes + #found
        if mark(found) == edge then
          local place = math.max(first, 0) + i - 1
          count({lost = math.max(place - expected, 0)})
          redis.call('HSET', fair, 'arranged', length - place)
          return place
        end
      end
      if #page == 0 then
        break
      end
      first = first + step
    end
  end
  -- Nobody looks for it again.
  redis.call('HDEL', fair, 'edge')
end

-- Writes down that so many entries at the right were read.
local function set_edge(size)
  local edge = redis.call('LINDEX', queue, -size)
  if edge then
    redis.pcall('HSET', fair, 'arranged', size, 'edge', mark(edge))
  else
    redis.pcall('HDEL', fair, 'edge')
  end
end

-- Notes that the first so many entries were put in order at the right (`sign` is 1), or were taken
-- from those in order (-1). An empty queue needs no books.
local function note(entries, many, sign)
  begin_writing()
  if misuse(fair) then
    return
  elseif redis.call('LLEN', queue) == 0 then
    redis.call('UNLINK', fair)
    if not misuse(behind) then
      redis.call('UNLINK', behind)
    end
  elseif many > 0 then
    local changes = {arranged = sign * many, claimed = -sign * many}
    for i = 1, many do
      add(changes, 'of ' .. tenant_of(entries[i]), sign)
    end
    count(changes)
  end
end
