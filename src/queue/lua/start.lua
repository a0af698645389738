-- Notes that a model begins on jobs: only these can have taken a lost worker down.
-- ARGV: tokens
local wrong = wrong_type(inflight)
if wrong then return wrong end

for i = 3, #ARGV do
  if redis.call('HEXISTS', inflight, ARGV[i]) == 1 then
    -- As in extend.lua, for a server that is out of memory.
    redis.pcall('SREM', started, ARGV[i])
    redis.pcall('SADD', started, ARGV[i])
  end
end
return 1
