-- Gives a lock back, if it is still ours. ARGV: 3 key, 4 token
if redis.call('GET', ARGV[3]) == ARGV[4] then
  redis.call('DEL', ARGV[3])
end
return 1
