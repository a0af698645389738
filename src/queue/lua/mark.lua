-- Notes since when nodes have a pending key but no job. ARGV: nodes
local wrong = wrong_type(orphans)
if wrong then return wrong end

local now = now_ms()
for i = 3, #ARGV do
  if live_job(ARGV[i]) then
    redis.call('ZADD', orphans, 'NX', integer(now), ARGV[i])
  end
end
begin_time(now)
return 1
