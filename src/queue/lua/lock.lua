-- Takes a lock for a while, if nobody holds it. ARGV: 3 key, 4 token, 5 time to live (ms)
-- Answer: 1 or 0
local wrong = wrong_type(ARGV[3])
if wrong then return wrong end

if redis.call('SET', ARGV[3], ARGV[4], 'NX', 'PX', ARGV[5]) then
  return 1
end
return 0
