-- Takes jobs from the right of the queue and writes each under a lease.
-- ARGV: 3 jobs wanted, 4 lease (ms), 5 prefix of the tokens,
--       6 most bytes of entries in an answer of several, 7 how many jobs of a tenant may be
--       claimed (-1: any number),
--       then pairs: tenant, how many of its jobs instead
-- Answer: how many new entries are still to be read (read.lua), how many jobs were ended because their
--         nodes are gone, then token, entry, token, entry, …
local wrong = wrong_type(queue, inflight, leases)
if wrong then return wrong end

local wanted = tonumber(ARGV[3])
local length = redis.call('LLEN', queue)
if length == 0 then
  note({}, 0, -1)
end
if length == 0 or wanted == 0 then
  return {'0', '0'}
end
local arranged = keep_order(wanted, length)

-- Picks in order, passing over tenants that are at their limit; answers also how many of these were
-- among the arranged ones.
local function pick_around(default_limit, limits)
  local most = math.min(length, WHOLE)
  local size = math.min(wanted * 2, most)
  while true do
    local picked, kept, used, in_order = {}, {}, {}, 0
    local entries = slice(length - size, length - 1)
    for i, entry in ipairs(entries) do
      local tenant = tenant_of(entry)
      local limit = limits[tenant] or default_limit
      if #picked < wanted and (used[tenant] or 0) < limit then
        used[tenant] = (used[tenant] or 0) + 1
        picked[#picked + 1] = entry
        if i <= arranged then
          in_order = in_order + 1
        end
      else
        kept[#kept + 1] = entry
      end
    end
    if #picked == wanted or size == most or #entries < size then
      if #picked > 0 then
        rewrite(#entries, kept)
      end
      return picked, in_order
    end
    size = math.min(size * 4, most)
  end
end

local picked, in_order
local default_limit = tonumber(ARGV[7])
if default_limit < 0 then
  picked = redis.call('RPOP', queue, wanted)
  in_order = math.min(#picked, arranged)
else
  local limits = {}
  for i = 8, #ARGV, 2 do
    limits[ARGV[i]] = tonumber(ARGV[i + 1])
  end
  picked, in_order = pick_around(default_limit, limits)
end

-- What is too much for one answer goes back to its place.
local bytes = 0
for i, entry in ipairs(picked) do
  bytes = bytes + #entry
  if i > 1 and bytes > tonumber(ARGV[6]) then
    local back = {}
    for j = #picked, i, -1 do
      back[#back + 1] = table.remove(picked)
    end
    push('RPUSH', queue, back)
    break
  end
end

note(picked, math.min(#picked, in_order), -1)
local now, claimed, deadlines = now_ms(), {}, {}
local answer, ended = {integer(length - arranged), '0'}, 0
local is_any_changed = size('HLEN', changed) > 0
local deadline = integer(now + ARGV[4])
for i, entry in ipairs(picked) do
  local node = is_any_changed and node_of(entry)
  local job, newer = successor_of(node or '')
  if newer then
    -- The job for the newer text has not failed yet.
    redis.call('HDEL', changed, node)
    redis.call('SET', pending_prefix .. node, job)
    entry = newer
  end
  -- Leases of one deadline are listed by their names: digits of one width keep them in order.
  local token = string.format('%s:%09d', ARGV[5], i)
  if job == GONE then
    finish(node, tenant_of(entry))
    ended = ended + 1
  else
    claimed[#claimed + 1] = token
    claimed[#claimed + 1] = entry
    answer[#answer + 1] = token
    answer[#answer + 1] = entry
    deadlines[#deadlines + 1] = deadline
    deadlines[#deadlines + 1] = token
  end
end
push('HSET', inflight, claimed)
push('ZADD', leases, deadlines)
begin_time(now)
answer[2] = integer(ended)
return answer
