-- Takes jobs from the right of the queue and writes each under a lease.
-- ARGV: 3 jobs wanted, 4 lease (ms), 5 prefix of the tokens, 6 largest window,
--       7 most bytes of entries in an answer of several, 8 how many jobs of a tenant may be
--       claimed (-1: any number),
--       then pairs: tenant, how many of its jobs instead
-- Answer: token, entry, token, entry, …
--
-- Fairness: entries are put into round-robin order over tenants once, in place, and then
-- claimed by plain pops. `arranged` counts the entries at the right that are in that order;
-- newer ones are merged in when the arranged part runs short, or after a pause that grows with
-- the window, so that arranging stays a small share of the server's time. Order inside a
-- tenant never changes. A tenant's name is found by pattern: it only steers the order.
local wrong = wrong_type(queue, inflight, leases)
if wrong then return wrong end

local wanted, max_window = tonumber(ARGV[3]), tonumber(ARGV[6])
local length = redis.call('LLEN', queue)
if length == 0 or wanted == 0 then
  return {}
end
local now = now_ms()
local window = math.min(length, max_window)

-- A plain search first: matching a pattern at each character of each entry would take the server
-- longer than all the rest.
local find, match = string.find, string.match
local function tenant_of(entry)
  local from = 1
  while true do
    local _, name = find(entry, '"tenant_id"', from, true)
    if not name then
      return 'default'
    end
    local tenant = match(entry, '^%s*:%s*"([^"]*)"', name + 1)
    if tenant then
      return tenant
    end
    from = name + 1
  end
end

-- Writes the window back; entries[1] is the one to be claimed first.
local function rewrite(size, entries)
  local left_to_right = {}
  for i = #entries, 1, -1 do
    left_to_right[#left_to_right + 1] = entries[i]
  end
  redis.call('LTRIM', queue, 0, -size - 1)
  push('RPUSH', queue, left_to_right)
end

local function arrange()
  local entries = redis.call('LRANGE', queue, -window, -1)
  local lanes, by_tenant = {}, {}
  for i = #entries, 1, -1 do
    local tenant = tenant_of(entries[i])
    local lane = by_tenant[tenant]
    if not lane then
      lane = {}
      by_tenant[tenant] = lane
      lanes[#lanes + 1] = lane
    end
    lane[#lane + 1] = entries[i]
  end
  if #lanes == 1 then
    return
  end
  local fairly, round = {}, 1
  while #lanes > 0 do
    local longer = {}
    for _, lane in ipairs(lanes) do
      fairly[#fairly + 1] = lane[round]
      if lane[round + 1] then
        longer[#longer + 1] = lane
      end
    end
    lanes, round = longer, round + 1
  end
  rewrite(window, fairly)
end

local state = misuse(fair) and {} or redis.call('HMGET', fair, 'arranged', 'at')
local arranged = math.min(tonumber(state[1] or 0) or 0, length)
local at = tonumber(state[2] or 0) or 0
if arranged < window and (arranged < wanted or now - at >= window / 50) then
  arrange()
  arranged, at = window, now
end

-- Picks in order, passing over tenants that are at their limit.
local function pick_around(default_limit, limits)
  local size = math.min(wanted * 2, window)
  while true do
    local picked, kept, used = {}, {}, {}
    local entries = redis.call('LRANGE', queue, -size, -1)
    for i = #entries, 1, -1 do
      local tenant = tenant_of(entries[i])
      local limit = limits[tenant] or default_limit
      if #picked < wanted and (used[tenant] or 0) < limit then
        used[tenant] = (used[tenant] or 0) + 1
        picked[#picked + 1] = entries[i]
      else
        kept[#kept + 1] = entries[i]
      end
    end
    if #picked == wanted or size == window then
      if #picked > 0 then
        rewrite(size, kept)
      end
      return picked
    end
    size = math.min(size * 4, window)
  end
end

local picked
local default_limit = tonumber(ARGV[8])
if default_limit < 0 then
  picked = redis.call('RPOP', queue, wanted)
else
  local limits = {}
  for i = 9, #ARGV, 2 do
    limits[ARGV[i]] = tonumber(ARGV[i + 1])
  end
  picked = pick_around(default_limit, limits)
end

-- What is too much for one answer goes back to its place.
local bytes = 0
for i, entry in ipairs(picked) do
  bytes = bytes + #entry
  if i > 1 and bytes > tonumber(ARGV[7]) then
    local back = {}
    for j = #picked, i, -1 do
      back[#back + 1] = table.remove(picked)
    end
    push('RPUSH', queue, back)
    break
  end
end

redis.pcall('HSET', fair, 'arranged', math.max(arranged - #picked, 0), 'at', integer(at))
local deadline, claimed = integer(now + ARGV[4]), {}
for i, entry in ipairs(picked) do
  -- Leases of one deadline are listed by their names: digits of one width keep them in order.
  local token = string.format('%s:%09d', ARGV[5], i)
  redis.call('HSET', inflight, token, entry)
  redis.call('ZADD', leases, deadline, token)
  claimed[#claimed + 1] = token
  claimed[#claimed + 1] = entry
end
return claimed
