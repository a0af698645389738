-- Notes that a model is done with jobs: whatever happens now, they are not to blame.
-- ARGV: tokens
local wrong = wrong_type(started)
if wrong then return wrong end

for i = 3, #ARGV do
  redis.call('SREM', started, ARGV[i])
end
return 1
