-- The entries at the right of the queue stand in turns, one of each tenant in each turn, so that a
-- claim is a plain pop. Here are the means to put them so; fair.lua says when.

-- So many entries at the right are arranged at once, or up to so many for a claim of half as many; or
-- all, where there are no more than so many. It takes the server about 2 µs for each.
local WINDOW, LARGEST_WINDOW, WHOLE = 1000, 2000, 5000
-- In fewer claims than this a new arrangement is due where tenants are behind.
local STALE_BEHIND = 150
-- Microseconds that an exchange may take for its entries, and entries that the server passes in one
-- on its way to an entry in the middle.
local EXCHANGE_TIME, PASSED = 2000, 12500
-- A tenant is behind if its next job stands so many times deeper than its turn.
local TOO_DEEP = 4
-- Tenants behind, each counted once for each of the parts of the queue where it has such jobs.
local MOST_BEHIND = 10000
-- So many of these are looked at to find the one whose tenant has least, and less than its share.
local LOOKED_AT = 1000

-- The entries at these places from the left, the rightmost first, as many as are read at once.
local function slice(first, last)
  local entries, bytes, page, from = {}, 0, 50, last + 1
  while from > first and bytes < MOST_BYTES do
    local to = from - 1
    from = math.max(first, from - page)
    local found = redis.call('LRANGE', queue, from, to)
    if #found == 0 then
      break
    end
    for i = #found, 1, -1 do
      entries[#entries + 1] = found[i]
      bytes = bytes + #found[i]
    end
    page = math.max(1, math.min(1000, math.floor((MOST_BYTES - bytes) * #entries / bytes)))
  end
  return entries
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

-- How many tenants have jobs that were read.
local function tenants_in_all()
  local others = 0
  for _, value in ipairs(redis.call('HMGET', fair, unpack(FIELDS))) do
    others = others + (value and 1 or 0)
  end
  return redis.call('HLEN', fair) - others
end

-- Notes which tenants are behind: those of jobs that stay in the part of the queue whose leftmost entry
-- is the one of this number, with so many read ones to their right, and so few of their own.
local function note_behind(staying, before, depth, number)
  if depth <= WINDOW or misuse(behind) or redis.call('ZCARD', behind) >= MOST_BEHIND then
    return
  end
  local each, members = math.max(tenants_in_all(), 1) * TOO_DEEP, {}
  for tenant in pairs(staying) do
    if ((before[tenant] or 0) + 1) * each < depth then
      members[#members + 1] = number
      members[#members + 1] = integer(number) .. ' ' .. tenant
    end
  end
  if #members > 0 then
    push('ZADD', behind, members)
    count({claimed = STALE_BEHIND})
  end
end

-- Reads the oldest of so many new entries, which stay where they are.
local function read(length, new)
  local entries = slice(math.max(new - MOST_NEW, 0), new - 1)
  local found, fields = {}, {}
  for _, entry in ipairs(entries) do
    add(found, tenant_of(entry), 1)
  end
  local changes = {total = #entries}
  for tenant, many in pairs(found) do
    fields[#fields + 1] = 'of ' .. tenant
    changes['of ' .. tenant] = many
  end
  local numbers, before = books_of(fields), {}
  for tenant in pairs(found) do
    before[tenant] = numbers['of ' .. tenant]
  end
  count(changes)
  set_edge(length - new + #entries)
  note_behind(found, before, length - new, book('total'))
  return new - #entries
end

-- The tenant that a member of `behind` names.
local function behind_of(member)
  return match(member, '^%d+ (.*)$') or ''
end

-- The part of the queue where an exchange is to look, by its number: one of a tenant that has less than
-- its share in the window. Of two exchanges, one serves those that came last, for whom least was done, and
-- the other goes through all. nil if there is none among those that are looked at.
local function part_to_exchange(here, share)
  local function neediest(members)
    local number, least = nil, share
    for i = 1, #members, 2 do
      local many = here[behind_of(members[i])] or 0
      if many < least then
        number, least = members[i + 1], many
      end
      if least == 0 then
        break
      end
    end
    return number
  end
  local newest = book('newest') == 0
  redis.call('HSET', fair, 'newest', newest and 1 or 0)
  if newest then
    return neediest(redis.call('ZRANGE', behind, 0, LOOKED_AT - 1, 'REV', 'WITHSCORES'))
  end
  local from = '(' .. integer(book('exchanged'))
  local members = redis.call('ZRANGEBYSCORE', behind, from, '+inf', 'WITHSCORES', 'LIMIT', 0, LOOKED_AT)
  local number, last = neediest(members), tonumber(members[#members] or 0)
  -- Those of one part that were not all looked at are looked at again. Behind the last one it begins anew.
  if #members == 2 * LOOKED_AT and last > tonumber(members[2]) then
    last = last - 1
  end
  redis.call('HSET', fair, 'exchanged', number or integer(last))
  return number
end

-- Changes places: jobs of tenants that are behind, of one part of the queue, with jobs of tenants that
-- have more than their turns in the window. Answers the window's entries as they are then, each with its
-- tenant; `here` is how many of each tenant there are.
local function exchange(entries, tenants, here, length, new)
  local window, left_of, live, named = #entries, new + book('total'), 0, {}
  -- What has come to the window since is behind no more.
  push('ZREM', behind,
    redis.call('ZRANGEBYSCORE', behind, '-inf', left_of - (length - window), 'LIMIT', 0, 1000))
  for _ in pairs(here) do
    live = live + 1
  end
  local number = tonumber(part_to_exchange(here, math.max(math.floor(window / (live + 1)), 1)))
  if not number then
    return entries, tenants
  end
  local first = left_of - number
  local after = math.min(first + MOST_NEW, length - window)
  local members = redis.call('ZRANGEBYSCORE', behind, number, number)
  if first < new then
    push('ZREM', behind, members)
    return entries, tenants
  end
  for _, member in ipairs(members) do
    local tenant = behind_of(member)
    named[tenant] = member
    live = live + (here[tenant] and 0 or 1)
  end
  local share = math.max(math.floor(window / live), 1)
  local cost = 4 + math.min(first, length - first) / PASSED
  local most = math.max(math.floor(EXCHANGE_TIME / cost / #members), 1)
  local places, theirs, owners, taken, left = {}, {}, {}, {}, {}
  local part = slice(first, after - 1)
  for i, entry in ipairs(part) do
    local tenant = tenant_of(entry)
    if named[tenant] then
      local many = taken[tenant] or 0
      if many < most and many + (here[tenant] or 0) < share and #places * cost < EXCHANGE_TIME then
        taken[tenant] = many + 1
        places[#places + 1], theirs[#theirs + 1], owners[#owners + 1] = after - i, entry, tenant
      else
        left[tenant] = true
      end
    end
  end
  -- The last of the window give way, of tenants that have more than their share.
  local stays, gone, giving = {}, 0, {}
  for i = window, 1, -1 do
    local tenant = tenants[i]
    if gone < #places and here[tenant] > share then
      gone = gone + 1
      giving[gone], here[tenant] = entries[i], here[tenant] - 1
    else
      stays[#stays + 1] = i
    end
  end
  local all, whose = {}, {}
  for i = #stays, 1, -1 do
    all[#all + 1], whose[#whose + 1] = entries[stays[i]], tenants[stays[i]]
  end
  for i = 1, #places do
    if i <= gone then
      redis.call('LSET', queue, places[i], giving[i])
      all[#all + 1], whose[#whose + 1] = theirs[i], owners[i]
    else
      left[owners[i]] = true
    end
  end
  local done = {}
  for tenant, member in pairs(named) do
    if not left[tenant] and #part == after - first then
      done[#done + 1] = member
    end
  end
  -- Of entries so large that only some of the part were read, no other part waits for the rest.
  if gone == 0 and #part < after - first then
    done = members
  end
  push('ZREM', behind, done)
  return all, whose
end

-- Puts so many entries at the right in turns. Where they were not all read before, or are all that
-- there are, the books are written anew.
local function arrange(length, window, now, new)
  local entries, tenants, here, turns, counts = slice(length - window, length - 1), {}, {}, {}, {}
  window = #entries
  for i, entry in ipairs(entries) do
    tenants[i] = tenant_of(entry)
    add(here, tenants[i], 1)
  end
  local is_anew = not new or window == length
  if not is_anew and not misuse(behind) and redis.call('ZCARD', behind) > 0 then
    entries, tenants = exchange(entries, tenants, here, length, new)
  end
  for i, entry in ipairs(entries) do
    local tenant = tenants[i]
    local turn = (counts[tenant] or 0) + 1
    counts[tenant] = turn
    local in_turn = turns[turn]
    if in_turn then
      in_turn[#in_turn + 1] = entry
    else
      turns[turn] = {entry}
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
    return window
  end
  if is_anew then
    local books = {'total', window}
    for tenant, all in pairs(counts) do
      books[#books + 1] = 'of ' .. tenant
      books[#books + 1] = all
    end
    redis.call('UNLINK', fair)
    if not misuse(behind) then
      redis.call('UNLINK', behind)
    end
    push('HSET', fair, books)
    redis.call('HSET', fair, 'merged', integer(now))
  end
  redis.call('HSET', fair, 'at', integer(now), 'unmerged', 1)
  redis.call('HDEL', fair, 'claimed', 'due')
  set_edge(is_anew and window or length - new)
  return is_anew and window or length - new
end
