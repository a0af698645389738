-- The fair order. Each entry is read once when it is new: the oldest first, in many steps where many
-- are new at once. Order inside a tenant changes only by an exchange.
-- 1. `merge`: new entries at the left join the turns at the right, if all of their tenant's are there.
-- 2. `arrange`: a window at the right is put in turns.
-- 3. `exchange`: a tenant whose jobs stand much deeper than its turns would have them is noted as
--    `behind`, and gets jobs into the window for jobs of tenants that have many there.

-- New entries are merged into the turns of so many entries at the right, or of up to so many where a
-- new tenant needs more turns; where it needs far more, only into the first of them.
local HEAD, LARGEST_HEAD = 400, 1000
-- Milliseconds between two merges, two exchanges, and two arrangements for each entry: when tenants
-- run out of turns where claims are rare, and elsewhere. Work on an entry takes the server about a
-- microsecond, so that this makes a few hundredths of its time.
local MERGE_PAUSE, EXCHANGE_PAUSE, PAUSE, LONG_PAUSE = 15, 12, 1 / 25, 1
-- The window is arranged again when so many were claimed from it.
local STALE = 500
-- The books of so many tenants are read whole.
local FEW_TENANTS = 400

-- Of all tenants how many entries of theirs were read.
local function all_counts()
  local counts, all = {}, redis.call('HGETALL', fair)
  for i = 1, #all, 2 do
    local tenant, number = match(all[i], '^of (.*)$'), tonumber(all[i + 1])
    if tenant and number and number < math.huge then
      counts[tenant] = number
    end
  end
  return counts
end

-- The same of the tenants that are named here and not there.
local function read_counts(tenants, counts)
  local fields = {}
  for tenant in pairs(tenants) do
    fields[#fields + 1] = not counts[tenant] and 'of ' .. tenant or nil
  end
  for field, number in pairs(books_of(fields)) do
    counts[sub(field, 4)] = number
  end
end

-- Reads so many entries at the left: each with its tenant, and how many there are of each, as the
-- books will have it. Answers also how many entries would let the tenants that have none in order yet
-- take part with all.
local function read_new(new, live, counts)
  local entries = new > 0 and redis.call('LRANGE', queue, 0, new - 1) or {}
  local tenants, found = {}, {}
  for i = 1, new do
    tenants[i] = tenant_of(entries[i])
    add(found, tenants[i], 1)
  end
  if live > FEW_TENANTS then
    read_counts(found, counts)
  end
  local changes, turns = {}, 0
  for tenant, jobs in pairs(found) do
    changes['of ' .. tenant] = jobs
    if not counts[tenant] then
      turns, live = math.max(turns, jobs), live + 1
    end
  end
  return entries, tenants, changes, turns * live
end

-- Reads the turns of so many entries at the right: how many there are and where each ends; in which
-- a tenant was last, and how often it was.
local function read_turns(length, size)
  local entries = slice(length - size, length - 1)
  local turns, ends, last, seen = 1, {}, {}, {}
  for i, entry in ipairs(entries) do
    local tenant = tenant_of(entry)
    if last[tenant] == turns then
      ends[turns] = i - 1
      turns = turns + 1
    end
    last[tenant] = turns
    add(seen, tenant, 1)
  end
  ends[turns] = #entries
  return entries, turns, ends, last, seen
end

-- Merges the new entries at the left into the turns at the right, if all of their tenant's are there;
-- others stay where they are, behind all of their tenant's. Answers whether a tenant runs out of turns
-- although more of its entries wait behind.
local function merge(length, new)
  local arranged, live = length - new, tenants_in_all()
  local counts = live <= FEW_TENANTS and all_counts() or {}
  local entries, tenants, changes, wanted = read_new(new, live, counts)
  local size = math.min(arranged, math.max(HEAD, math.min(wanted, LARGEST_HEAD)))
  if wanted > 2 * LARGEST_HEAD then
    size = math.min(arranged, HEAD)
  end
  local head, turns, ends, last, seen = read_turns(length, size)
  size = #head
  local is_all = size == arranged
  if live > FEW_TENANTS then
    read_counts(seen, counts)
  end

  -- Which entries go to the end of which turn.
  local stay, staying, before, joining, last_turn = {}, {}, {}, {}, 0
  for i = new, 1, -1 do
    local tenant = tenants[i]
    local turn, here = (last[tenant] or 0) + 1, seen[tenant] or 0
    if is_all or turn <= turns and (counts[tenant] or 0) <= here then
      joining[turn] = joining[turn] or {}
      table.insert(joining[turn], entries[i])
      last[tenant], last_turn, seen[tenant] = turn, math.max(last_turn, turn), here + 1
    else
      stay[#stay + 1] = entries[i]
      if not staying[tenant] then
        staying[tenant], before[tenant] = true, counts[tenant]
      end
    end
    add(counts, tenant, 1)
  end
  if last_turn > 0 and next(last, next(last)) then
    local in_order, from = {}, 1
    for turn = 1, last_turn do
      local to = ends[turn] or size
      for i = from, to do
        in_order[#in_order + 1] = head[i]
      end
      from = math.max(to + 1, from)
      for _, entry in ipairs(joining[turn] or {}) do
        in_order[#in_order + 1] = entry
      end
    end
    rewrite(from - 1, in_order)
    redis.call('LTRIM', queue, new, -1)
    push('LPUSH', queue, stay)
    changes.total = #stay
  else
    changes.total = new
  end
  count(changes)
  set_edge(length)
  note_behind(staying, before, arranged, book('total'))

  for tenant, all in pairs(counts) do
    local here = seen[tenant] or 0
    if not is_all and all > here and here < turns / 2 then
      return true
    end
  end
  return false
end

-- Sees to it that the next entries to be claimed, so many as are wanted, are in order. Answers how
-- many at the right were read.
local function keep_order(wanted, length)
  begin_writing()
  local now, new = now_ms(), unread(length)
  local window = length <= WHOLE and length or math.max(WINDOW, math.min(2 * wanted, LARGEST_WINDOW))
  -- What is still to come was written by another clock.
  local function since(field)
    local time = book(field)
    return time <= now and now - time or now
  end
  local lost, noted = book('lost'), length - (new or 0)
  if not new or new > MOST_NEW and window == length
    or lost > (window == length and 0 or math.max(noted, WINDOW) / 4)
      and since('at') >= window * PAUSE then
    return arrange(length, window, now)
  end
  local is_short, since_merged = length - new < math.min(wanted, length), since('merged')
  if not is_short and since_merged < MERGE_PAUSE then
    return length - new
  end

  -- One step a claim: each takes some milliseconds.
  local claimed = window < length and tenants_in_all() > 1 and book('claimed') or 0
  local must_exchange = claimed >= STALE_BEHIND and redis.pcall('ZCARD', behind) ~= 0
    and since('at') >= EXCHANGE_PAUSE
  -- The two take turns, if both are to be done in each claim.
  local is_merged = new == 0 or book('unmerged') == 0
  if is_merged and (claimed >= STALE or must_exchange or book('due') > 0) then
    return arrange(length, math.min(window, length - new), now, new)
  end
  -- A merge of nothing would only keep the right from being arranged for a while.
  if new == 0 and window < length then
    return length
  end

  local is_behind = false
  if new > MOST_NEW then
    new = read(length, new)
  else
    is_behind, new = merge(length, new), 0
  end
  redis.call('HSET', fair, 'merged', integer(now))
  redis.call('HDEL', fair, 'unmerged')
  window = math.min(window, length - new)
  -- Where claims are rare, the longer pause would save nothing.
  local pause = since_merged >= window * PAUSE and PAUSE or LONG_PAUSE
  if is_behind and since('at') >= window * pause then
    if window == length then
      return arrange(length, window, now, new)
    end
    redis.call('HSET', fair, 'due', 1)
  end
  return length - new
end
