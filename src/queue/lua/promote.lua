-- Moves retries that are due to the queue. ARGV: 3 how many at most
-- Answer: {moved, milliseconds until the next one is due, or -1}
-- It runs every second, and so it is what notes the time.
local now = now_ms()
note_time(now)
local wrong = wrong_type(retry, queue)
if wrong then return wrong end

local due = redis.call('ZRANGEBYSCORE', retry, '-inf', string.format('%.3f', now / 1000), 'LIMIT', 0, ARGV[3])
for _, entry in ipairs(due) do
  stop_waiting(entry, node_of(entry) or '')
end
push('LPUSH', queue, due)
local next_due = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2]
if next_due then
  return {#due, math.max(math.ceil(tonumber(next_due) * 1000 - now), 0)}
end
return {#due, -1}
