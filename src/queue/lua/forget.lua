-- Ends the jobs of a node that is gone. ARGV: 3 node, 4 tenant, 5 most entries looked at
-- Answer: how many were ended
-- A job in flight is ended by its holder, which finds the row gone; so is one too deep in the queue.
local wrong = wrong_type(queue, retry, inflight, changed)
if wrong then return wrong end

local node, tenant, ended = ARGV[3], ARGV[4], 0
redis.call('HDEL', changed, node)
if not live_job(node) then
  return 0
end
local found = {}
for first = 0, math.min(redis.call('LLEN', queue), tonumber(ARGV[5])) - 1, 1000 do
  for _, entry in ipairs(redis.call('LRANGE', queue, first, first + 999)) do
    if is_of(entry, node) then
      found[#found + 1] = entry
    end
  end
end
for _, entry in ipairs(found) do
  ended = ended + redis.call('LREM', queue, 1, entry)
end
local waiting = waiting_retry(node)
if waiting then
  ended = ended + redis.call('ZREM', retry, waiting)
end
if ended > 0 then
  release(tenant, ended)
  if not is_in_flight(node) then
    redis.call('DEL', pending_prefix .. node)
  end
end
return ended
