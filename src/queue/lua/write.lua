-- Whether this server writes, at the least cost: the key is gone when the script ends. Stands alone.
-- ARGV: 1 a key of its own
redis.call('SET', ARGV[1], '1', 'PX', 1000)
redis.call('DEL', ARGV[1])
return 1
