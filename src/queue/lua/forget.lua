-- Ends the jobs of a node that is gone. ARGV: 3 node, 4 tenant, 5 most entries looked at
-- Answer: how many were ended
-- A job in flight is ended by its holder, which finds the row gone; one deep in the queue when it is
-- claimed.
local wrong = wrong_type(queue, retry)
if wrong then return wrong end

local node, tenant, ended = ARGV[3], ARGV[4], 0
redis.pcall('HDEL', changed, node)
if not live_job(node) then
  return 0
end
local place = place_in_queue(node, tonumber(ARGV[5]))
while place do
  local entry, new = redis.call('LINDEX', queue, place), unread(redis.call('LLEN', queue))
  ended = ended + redis.call('LREM', queue, 1, entry)
  if new and place >= new then
    note({entry}, 1, -1)
    if place == new and redis.call('LLEN', queue) > new then
      set_edge(redis.call('LLEN', queue) - new)
    end
  end
  place = place_in_queue(node, tonumber(ARGV[5]))
end
local waiting = waiting_retry(node)
if waiting then
  ended = ended + stop_waiting(waiting, node)
end
if ended > 0 then
  forget_time()
  release(tenant, ended)
  redis.call('DEL', pending_prefix .. node)
else
  redis.pcall('HSET', changed, node, GONE)
end
return ended
