-- The fair order: the entries at the right of the queue stand in turns, one of each tenant in each
-- turn, so that a claim is a plain pop. Order inside a tenant never changes.
--
-- `fair` holds the books: the leftmost entry that is in order (`edge`), how many are in order
-- (`arranged`) and how many of these each tenant has (`of {tenant}`), when they were arranged (`at`)
-- and new ones merged in (`merged`). Other programs take from the queue without a word here, so the
-- books only steer the order: the edge is looked for, and a count that is too high leads to a new
-- arrangement.

-- So many entries at the right are arranged at once, which takes the server about 4 ms; or all,
-- where no more wait behind them than can be new.
local WINDOW = 3000
-- So many new entries are merged at once, into the turns of so many entries at the right, or of up
-- to so many where a new tenant needs more turns.
local MOST_NEW, HEAD, LARGEST_HEAD = 2000, 400, 2000
-- With fewer turns than this among those, a new tenant would soon wait again.
local FEWEST_TURNS = 4
-- An entry too large to be looked for is no edge.
local LARGEST_EDGE = 2000
-- Milliseconds between two merges; between two arrangements for each entry, when many are new, and
-- when a tenant runs out of turns. Work on an entry takes the server about a microsecond, so that
-- this makes a few hundredths of its time.
local MERGE_PAUSE, PAUSE, LONG_PAUSE = 15, 1 / 25, 1

-- A tenant's name is found by search, since decoding is dear: at its place in a job of ours, else
-- by a plain search first, because matching a pattern at each character takes longer than all else.
local find, match = string.find, string.match
local function tenant_of(entry)
  local tenant = match(entry, '^"tenant_id":"([^"]*)"', 99)
  local from = 1
  while not tenant do
    local _, name = find(entry, '"tenant_id"', from, true)
    if not name then
      return 'default'
    end
    tenant = match(entry, '^%s*:%s*"([^"]*)"', name + 1)
    from = name + 1
  end
  return tenant
end

local function add(counts, key, number)
  counts[key] = (counts[key] or 0) + number
end

-- Puts entries in the place of so many at the right; the first is the one to be claimed first.
local function rewrite(size, entries)
  local left_to_right, length = {}, #entries
  for i = 1, length do
    left_to_right[i] = entries[length + 1 - i]
  end
  redis.call('LTRIM', queue, 0, -size - 1)
  push('RPUSH', queue, left_to_right)
end

-- How many entries at the left are not in order; nil if that is not known, or more than are merged
-- at once.
local function unordered()
  local edge = not misuse(fair) and redis.call('HGET', fair, 'edge')
  return edge and redis.call('LPOS', queue, edge, 'MAXLEN', MOST_NEW + 1) or nil
end

-- Writes down that so many entries at the right are in order.
local function set_edge(size)
  local edge = redis.call('LINDEX', queue, -size)
  if edge and #edge <= LARGEST_EDGE then
    redis.pcall('HSET', fair, 'edge', edge)
  else
    redis.pcall('HDEL', fair, 'edge')
  end
end

-- Changes the counts of entries that are in order.
local function count(changes)
  for field, change in pairs(changes) do
    local left = redis.pcall('HINCRBY', fair, field, change)
    if type(left) ~= 'number' or left <= 0 then
      redis.pcall('HDEL', fair, field)
    end
  end
end

-- Notes that the first so many entries were put in order at the right (`sign` is 1), or were taken
-- from those in order (-1). An empty queue needs no books.
local function note(entries, many, sign)
  if misuse(fair) then
    return
  elseif redis.call('LLEN', queue) == 0 then
    redis.call('DEL', fair)
  elseif many > 0 then
    local changes = {arranged = sign * many}
    for i = 1, many do
      add(changes, 'of ' .. tenant_of(entries[i]), sign)
    end
    count(changes)
  end
end

-- How many entries of each tenant are in order.
local function books()
  local fields, counts = redis.pcall('HGETALL', fair), {}
  for i = 1, #fields, 2 do
    local tenant, number = match(fields[i], '^of (.*)$'), tonumber(fields[i + 1])
    if tenant and number and number < math.huge then
      counts[tenant] = number
    end
  end
  return counts
end

-- Puts so many entries at the right in order. Where all entries were in some order already, the books
-- say the same afterwards.
local function arrange(window, now, are_all_noted)
  local entries, turns, counts = redis.call('LRANGE', queue, -window, -1), {}, {}
  for i = #entries, 1, -1 do
    local tenant = tenant_of(entries[i])
    local turn = (counts[tenant] or 0) + 1
    counts[tenant] = turn
    local in_turn = turns[turn]
    if in_turn then
      in_turn[#in_turn + 1] = entries[i]
    else
      turns[turn] = {entries[i]}
    end
  end
  if #turns[1] > 1 then
    local in_order = {}
    for _, in_turn in ipairs(turns) do
      for _, entry in ipairs(in_turn) do
        in_order[#in_order + 1] = entry
      end
    end
    rewrite(window, in_order)
  end
  if misuse(fair) then
    return
  elseif are_all_noted then
    redis.call('HSET', fair, 'at', integer(now), 'merged', integer(now))
    return
  end
  local books = {'arranged', window, 'at', integer(now), 'merged', integer(now)}
  for tenant, all in pairs(counts) do
    books[#books + 1] = 'of ' .. tenant
    books[#books + 1] = all
  end
  redis.call('DEL', fair)
  push('HSET', fair, books)
  set_edge(window)
end

-- Reads so many entries at the left: each with its tenant, and how many there are of each, as the
-- books will have it. Answers also how many turns would let the tenants that have none in order yet
-- take part with all.
local function read_new(many, counts)
  local entries = many > 0 and redis.call('LRANGE', queue, 0, many - 1) or {}
  local tenants, changes, new = {}, {arranged = many}, {}
  for i = 1, many do
    tenants[i] = tenant_of(entries[i])
    add(changes, 'of ' .. tenants[i], 1)
    if not counts[tenants[i]] then
      add(new, tenants[i], 1)
    end
  end
  local turns, live = 0, 0
  for _, jobs in pairs(new) do
    turns, live = math.max(turns, jobs), live + 1
  end
  for _ in pairs(counts) do
    live = live + 1
  end
  return entries, tenants, changes, turns * live
end

-- Reads the turns of so many entries at the right: how many there are and where each ends; in which
-- a tenant was last, and how often it was.
local function read_turns(size)
  local entries = size > 0 and redis.call('LRANGE', queue, -size, -1) or {}
  local turns, ends, last, seen = 1, {}, {}, {}
  for i = size, 1, -1 do
    local tenant = tenant_of(entries[i])
    if last[tenant] == turns then
      ends[turns] = i + 1
      turns = turns + 1
    end
    last[tenant] = turns
    add(seen, tenant, 1)
  end
  ends[turns] = 1
  return entries, turns, ends, last, seen
end

-- Merges the entries at the left that are not in order yet into the turns at the right, if all of
-- their tenant's are there; others stay where they are, behind all of their tenant's. Answers whether
-- a tenant runs out of turns although more of its entries wait behind.
local function merge(arranged, unread)
  local counts = books()
  local entries, tenants, changes, wanted = read_new(unread, counts)
  local size = math.min(arranged, math.max(HEAD, math.min(wanted, LARGEST_HEAD)))
  local head, turns, ends, last, seen = read_turns(size)
  local is_all = size == arranged

  -- Which entries go to the end of which turn.
  local stay, joining, last_turn = {}, {}, 0
  for i = unread, 1, -1 do
    local tenant = tenants[i]
    local turn, here = (last[tenant] or 0) + 1, seen[tenant] or 0
    if is_all or turn <= turns and (counts[tenant] or 0) <= here then
      joining[turn] = joining[turn] or {}
      table.insert(joining[turn], entries[i])
      last[tenant], last_turn, seen[tenant] = turn, math.max(last_turn, turn), here + 1
    else
      stay[#stay + 1] = entries[i]
    end
    add(counts, tenant, 1)
  end
  if last_turn > 0 and next(last, next(last)) then
    local in_order, from = {}, size
    for turn = 1, last_turn do
      local to = ends[turn] or 1
      for i = from, to, -1 do
        in_order[#in_order + 1] = head[i]
      end
      from = to - 1
      for _, entry in ipairs(joining[turn] or {}) do
        in_order[#in_order + 1] = entry
      end
    end
    rewrite(size - from, in_order)
    redis.call('LTRIM', queue, unread, -1)
    push('LPUSH', queue, stay)
  end
  count(changes)
  set_edge(arranged + unread)

  for tenant, all in pairs(counts) do
    local here = seen[tenant] or 0
    if not is_all and all > here and here < turns / 2 then
      return true
    end
  end
  return false
end

-- Sees to it that the next entries to be claimed, so many as are wanted, are in order. Answers how
-- many at the right are.
local function keep_order(wanted, length)
  local now, books = now_ms(), {}
  if not misuse(fair) then
    books = redis.call('HMGET', fair, 'arranged', 'at', 'merged')
  end
  local function book(field)
    return tonumber(books[field] or 0) or 0
  end
  -- What is still to come was written by another clock.
  local function since(time)
    return time <= now and now - time or now
  end
  local arranged, since_arranged, since_merged = book(1), since(book(2)), since(book(3))
  local unread = unordered()
  arranged = arranged > 0 and math.floor(math.min(arranged, length)) or 0
  if unread then
    arranged = length - unread
  end
  local is_short = arranged < math.min(wanted, length)
  if not is_short and since_merged < MERGE_PAUSE then
    return arranged
  end

  local window = length <= WINDOW + MOST_NEW and length or WINDOW
  local pause, is_merged
  if unread and redis.call('HLEN', fair) <= HEAD / FEWEST_TURNS then
    local is_behind = merge(arranged, unread)
    redis.pcall('HSET', fair, 'merged', integer(now))
    arranged, is_short, is_merged = length, false, true
    -- Where claims are rare, the longer pause would save nothing.
    pause = is_behind and (since_merged >= window * PAUSE and PAUSE or LONG_PAUSE)
  elseif unread ~= 0 then
    pause = PAUSE
  end
  if pause and (is_short or since_arranged >= window * pause) then
    local are_all_noted = is_merged and window < length
    arrange(window, now, are_all_noted)
    arranged = are_all_noted and length or window
  end
  return arranged
end
