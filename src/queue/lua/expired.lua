-- Lists leases that have expired. ARGV: 3 how many at most.
-- Answer: of each: token, entry, '1' if a model had begun on it
local wrong = wrong_type(inflight, leases)
if wrong then return wrong end

local found = {}
local now = integer(now_ms())
for _, token in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, ARGV[3])) do
  local entry = redis.call('HGET', inflight, token)
  if entry then
    found[#found + 1] = token
    found[#found + 1] = entry
    found[#found + 1] = redis.pcall('SISMEMBER', started, token) == 1 and '1' or '0'
  else
    redis.call('ZREM', leases, token)
  end
end
return found
