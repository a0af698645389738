-- Which of the commands and keys that the scripts need are forbidden to this user. Stands alone, and
-- declares no keys: the server would refuse all of it, and say not why.
-- Each command is done on a key of its own, which is gone when the script ends; each key of ours gets
-- a write that changes nothing, whatever it holds.
-- ARGV: 1 a key of its own, then the keys of ours
-- Answer: what is forbidden
local probe, forbidden, seen = ARGV[1], {}, {}

-- What of a command is forbidden: 'key', 'command' or nothing.
local function refused(...)
  local answer = redis.pcall(...)
  local error = type(answer) == 'table' and answer.err or ''
  local function says(words)
    return string.find(error, words, 1, true)
  end
  if says('Unknown Redis command') then
    return 'command'
  elseif says('NOPERM') or says('executing the script') or says('ACL failure') then
    return says(' keys mentioned') and 'key' or says(' to access ') and 'key' or 'command'
  end
end

local function forbid(what)
  if not seen[what] then
    seen[what] = true
    forbidden[#forbidden + 1] = what
  end
end

for _, key in ipairs(ARGV) do
  if refused('ZREM', key, 'vecmill:probe') == 'key' then
    forbid('the key ' .. key)
  end
end
if #forbidden > 0 then
  return forbidden
end
for _, command in ipairs({
  'DEL', 'UNLINK', 'SET 1 PX 9999', 'GET', 'INCRBY 1', 'DECRBY 1', 'PERSIST', 'PEXPIRE 9999', 'PTTL',
  'EXISTS', 'TYPE', 'DEL', 'LPUSH a', 'RPUSH b', 'LLEN', 'LRANGE 0 -1', 'LINDEX 0', 'LSET 0 a',
  'LTRIM 0 -1', 'LREM 1 a', 'RPOP 1', 'DEL', 'HSET f 1', 'HGET f', 'HMGET f', 'HGETALL',
  'HEXISTS f', 'HKEYS', 'HSCAN 0', 'HLEN', 'HDEL f', 'DEL', 'SADD a', 'SISMEMBER a', 'SREM a',
  'DEL', 'ZADD 1 a', 'ZCARD', 'ZSCORE a', 'ZRANGE 0 -1', 'ZRANGEBYSCORE 0 1', 'ZREM a', 'DEL',
}) do
  local words = {}
  for word in string.gmatch(command, '%S+') do words[#words + 1] = word end
  local name = table.remove(words, 1)
  if refused(name, probe, unpack(words)) then
    forbid('the command ' .. name)
  end
end
if refused('TIME') then
  forbid('the command TIME')
end
return forbidden
