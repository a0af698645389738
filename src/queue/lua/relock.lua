-- Holds a lock for longer. ARGV: 3 key, 4 token, 5 time to live (ms). Answer: 1, or 0 if it is lost
if redis.pcall('GET', ARGV[3]) == ARGV[4] then
  return redis.call('PEXPIRE', ARGV[3], ARGV[5])
end
return 0
