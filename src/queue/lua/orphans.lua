-- Gives up the pending keys that had no job for too long, and forgets those that are gone.
-- ARGV: 3 age (ms), 4 how many to pass over, 5 how many to look at
-- Answer: {how many were looked at, how many were given up, {node that stays, …}}
local wrong = wrong_type(orphans)
if wrong then return wrong end

local now, first, given_up, stay = now_ms(), tonumber(ARGV[4]), 0, {}
local found = redis.call('ZRANGE', orphans, first, first + ARGV[5] - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  local node = found[i]
  if not live_job(node) then
    redis.call('ZREM', orphans, node)
  elseif now - tonumber(found[i + 1]) >= tonumber(ARGV[3]) then
    redis.call('ZREM', orphans, node)
    redis.call('DEL', pending_prefix .. node)
    given_up = given_up + 1
  else
    stay[#stay + 1] = node
  end
end
forget_time()
return {#found / 2, given_up, stay}
