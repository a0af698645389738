-- Notes that a model begins on jobs: only these can have taken a lost worker down.
-- ARGV: tokens
for i = 3, #ARGV do
  if redis.call('HEXISTS', inflight, ARGV[i]) == 1 then
    redis.call('SADD', started, ARGV[i])
  end
end
return 1
