-- Prolongs leases. ARGV: 3 lease (ms), then tokens. Answer: the tokens that hold none any more
local wrong = wrong_type(inflight, leases)
if wrong then return wrong end

local deadline, lost = integer(now_ms() + ARGV[3]), {}
for i = 4, #ARGV do
  if redis.call('HEXISTS', inflight, ARGV[i]) == 1 then
    -- A server that is out of memory refuses to add, unless the script has written before.
    redis.call('ZREM', leases, ARGV[i])
    redis.call('ZADD', leases, deadline, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
