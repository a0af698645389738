-- The fair order: the entries at the right of the queue stand in turns, one of each tenant in each
-- turn, so that a claim is a plain pop. Order inside a tenant never changes.
--
-- `fair` holds how many entries at the right are in order (`arranged`), how many of these each
-- tenant has (`of {tenant}`), when all of them were arranged (`at`), and when new ones were merged
-- in (`merged`). Other programs take from the queue without a word here, so these books only steer
-- the order, and are written anew from time to time.

-- New entries are merged into the turns of so many entries at the right, and so many at once.
local HEAD, MOST_NEW = 400, 2000
-- With fewer turns than this among those, a new tenant would soon wait again.
local FEWEST_TURNS = 4
-- Milliseconds between two merges. Between two times that all is arranged, for each entry: when many
-- are new, and when some tenant has had its turns. Work on an entry takes the server about a
-- microsecond, so that this makes a few hundredths of its time.
local MERGE_PAUSE, PAUSE, LONG_PAUSE = 15, 1 / 25, 3 / 2

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

-- Notes that entries were put in order at the right (`sign` is 1), or taken from there (-1).
-- An empty queue needs no books.
local function note(entries, sign)
  if misuse(fair) then
    return
  elseif redis.call('LLEN', queue) == 0 then
    redis.call('DEL', fair)
    return
  end
  local changes = {arranged = sign * #entries}
  for _, entry in ipairs(entries) do
    add(changes, 'of ' .. tenant_of(entry), sign)
  end
  for field, change in pairs(changes) do
    redis.pcall('HINCRBY', fair, field, change)
  end
end

-- How many entries of each tenant are in order.
local function noted()
  local fields, counts = redis.pcall('HGETALL', fair), {}
  for i = 1, #fields, 2 do
    local tenant = match(fields[i], '^of (.*)$')
    if tenant then
      counts[tenant] = tonumber(fields[i + 1])
    end
  end
  return counts
end

-- Puts so many entries at the right in order.
local function arrange(window, now)
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
  local books = {'arranged', window, 'at', integer(now), 'merged', integer(now)}
  for tenant, count in pairs(counts) do
    books[#books + 1] = 'of ' .. tenant
    books[#books + 1] = count
  end
  redis.pcall('DEL', fair)
  push('HSET', fair, books)
end

-- Merges the entries at the left that are not in order yet into the turns at the right, if all of
-- their tenant's are there; others stay where they are, behind all of their tenant's.
-- Answers how long all may stay unarranged, in milliseconds for each entry, if they must be arranged.
local function merge(arranged, unread)
  -- The turns at the right: in which a tenant was last, how often it was, where each turn ends.
  local head = arranged > 0 and redis.call('LRANGE', queue, -math.min(arranged, HEAD), -1) or {}
  local turns, last, seen, ends = 1, {}, {}, {}
  for i = #head, 1, -1 do
    local tenant = tenant_of(head[i])
    if last[tenant] == turns then
      ends[turns] = i + 1
      turns = turns + 1
    end
    last[tenant] = turns
    seen[tenant] = (seen[tenant] or 0) + 1
  end
  ends[turns] = 1
  local is_all = #head == arranged

  -- Which new ones go to the end of which turn.
  local new = unread > 0 and redis.call('LRANGE', queue, 0, unread - 1) or {}
  local stay, joining, last_turn = {}, {}, 0
  local counts, changes = noted(), {arranged = unread}
  for i = #new, 1, -1 do
    local tenant = tenant_of(new[i])
    local turn = (last[tenant] or 0) + 1
    if is_all or turn <= turns and (counts[tenant] or 0) <= (seen[tenant] or 0) then
      joining[turn] = joining[turn] or {}
      table.insert(joining[turn], new[i])
      last[tenant], last_turn = turn, math.max(last_turn, turn)
      add(seen, tenant, 1)
    else
      stay[#stay + 1] = new[i]
    end
    add(counts, tenant, 1)
    add(changes, 'of ' .. tenant, 1)
  end
  if last_turn > 0 and next(last, next(last)) then
    local in_order, from = {}, #head
    for turn = 1, last_turn do
      for i = from, ends[turn] or 1, -1 do
        in_order[#in_order + 1] = head[i]
      end
      from = (ends[turn] or 1) - 1
      for _, entry in ipairs(joining[turn] or {}) do
        in_order[#in_order + 1] = entry
      end
    end
    rewrite(#head - from, in_order)
    redis.call('LTRIM', queue, unread, -1)
    push('LPUSH', queue, stay)
  end
  for field, change in pairs(changes) do
    redis.pcall('HINCRBY', fair, field, change)
  end

  if is_all then
    return
  elseif turns < FEWEST_TURNS then
    return PAUSE
  end
  for tenant, count in pairs(counts) do
    if count > 0 and not seen[tenant] then
      return LONG_PAUSE
    end
  end
end

-- Sees to it that the next entries to be claimed, so many as are wanted, are in order.
local function keep_order(wanted, length, max_window)
  local now, books = now_ms(), {}
  if not misuse(fair) then
    books = redis.call('HMGET', fair, 'arranged', 'at', 'merged')
  end
  local function book(field)
    return tonumber(books[field] or 0) or 0
  end
  local arranged = math.max(math.min(book(1), length), 0)
  local at, merged, unread = book(2), book(3), length - arranged
  local is_short = arranged < wanted and unread > 0
  if not is_short and now - merged < MERGE_PAUSE then
    return
  end
  local pause = PAUSE
  if unread <= MOST_NEW then
    redis.pcall('HSET', fair, 'arranged', arranged, 'merged', integer(now))
    pause = merge(arranged, unread)
    is_short = false
  end
  local window = length <= max_window + MOST_NEW and length or max_window
  -- Where claims are rare, the longer pause would save nothing.
  if pause and now - merged >= window * PAUSE then
    pause = PAUSE
  end
  if pause and (is_short or now - at >= window * pause) then
    arrange(window, now)
  end
end
