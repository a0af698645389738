-- Notes that a model is done with jobs: whatever happens now, they are not to blame.
-- ARGV: tokens
for i = 3, #ARGV do
  redis.pcall('SREM', started, ARGV[i])
end
return 1
