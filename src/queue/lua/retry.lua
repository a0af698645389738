-- Lets jobs wait for their next attempt. ARGV: of each job: token, delay (ms), new entry
-- Answer: how many tokens held no job any more
local now, stale = now_ms(), 0
for i = 3, #ARGV, 3 do
  if take(ARGV[i]) then
    redis.call('ZADD', retry, string.format('%.3f', (now + ARGV[i + 1]) / 1000), ARGV[i + 2])
  else
    stale = stale + 1
  end
end
return stale
