-- Lets jobs wait for their next attempt. ARGV: of each job: token, node, delay (ms), new entry
-- Answer: how many tokens held no job any more
local wrong = wrong_type(inflight, leases, retry, queue)
if wrong then return wrong end

local now, stale = now_ms(), 0
for i = 3, #ARGV, 4 do
  if take(ARGV[i]) then
    -- A newer text does not wait for the failures of an older one.
    if not succeed(ARGV[i + 1]) then
      redis.call('ZADD', retry, string.format('%.3f', (now + ARGV[i + 2]) / 1000), ARGV[i + 3])
      redis.pcall('HSET', retrying, ARGV[i + 1], ARGV[i + 3])
    end
  else
    stale = stale + 1
  end
end
begin_time(now)
return stale
