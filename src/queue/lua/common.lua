-- Stands before every script: names for the keys, and what several scripts do.
-- Entries are opaque here wherever that is possible: a JSON text that this server's cjson
-- decodes and encodes again is not the same text, so all rewriting is done by the caller.
--
-- A script is not rolled back when a command in it fails. So whatever can fail is done before the
-- first write: `wrong_type` looks at the keys that the script cannot do without, and all others
-- are read and written by `pcall`: counts and pending keys, which others write too, and our own
-- books, without which work goes on.

local queue, retry, dlq = KEYS[1], KEYS[2], KEYS[3]
local inflight, leases = KEYS[4], KEYS[5]          -- token → entry, token → deadline (ms)
local reservations, fair, orphans = KEYS[6], KEYS[7], KEYS[8]
local started = KEYS[9]                            -- tokens whose text is with a model
local changed = KEYS[10]                           -- node with a job → job for its newer text
local sweep_lock, reclaim_lock = KEYS[11], KEYS[12]
local clock = KEYS[13]                             -- when the time was last looked at (ms)
local behind = KEYS[14]                            -- tenants whose jobs stand too deep (turns.lua)
local retrying = KEYS[15]                          -- node → its entry in `retry`
local pending_prefix, tenant_prefix = ARGV[1] .. ':', ARGV[2] .. ':'

local TYPES = {
  [queue] = 'list', [retry] = 'zset', [dlq] = 'list', [inflight] = 'hash', [leases] = 'zset',
  [reservations] = 'zset', [fair] = 'hash', [orphans] = 'zset', [started] = 'set',
  [changed] = 'hash', [sweep_lock] = 'string', [reclaim_lock] = 'string',
  [clock] = 'string', [behind] = 'zset',
  [retrying] = 'hash',
}

-- What is wrong with a key that holds another type than it must; nil if nothing is.
local function misuse(key)
  local actual = redis.call('TYPE', key).ok
  if actual ~= 'none' and actual ~= TYPES[key] then
    return key .. ' holds a ' .. actual .. ', but must hold a ' .. TYPES[key]
  end
  if actual == 'string' and redis.call('PTTL', key) == -1 then
    return key .. ' has no expiry, but must hold what has one'
  end
end

-- The error to answer when one of the keys holds another type than it must.
local function wrong_type(...)
  for _, key in ipairs({...}) do
    local what = misuse(key)
    if what then
      return redis.error_reply('WRONGTYPE ' .. what)
    end
  end
end

-- Lua numbers print with 14 digits, milliseconds since 1970 have 13.
local function integer(number)
  return string.format('%.0f', number)
end

-- Pushes many entries in few commands; `unpack` is bounded by the Lua stack.
local function push(command, key, entries)
  for first = 1, #entries, 1000 do
    redis.call(command, key, unpack(entries, first, math.min(first + 999, #entries)))
  end
end

-- Deadlines are times of the server's clock. While any of them waits, the time is noted again and
-- again; a clock that is behind what was noted was set back, by hand or because another server took
-- over. Then all of them move with it, before anything else is done: each waits as long as it had to
-- when the time was last noted. A step of less than this (ms) is let pass.
local SMALL_STEP, A_DAY = 1000, 86400000

local function move(key, by)
  if misuse(key) then
    return
  end
  for first = 0, redis.call('ZCARD', key) - 1, 500 do
    local found, moved = redis.call('ZRANGE', key, first, first + 499, 'WITHSCORES'), {}
    for i = 1, #found, 2 do
      moved[i], moved[i + 1] = string.format('%.3f', tonumber(found[i + 1]) - by), found[i]
    end
    push('ZADD', key, moved)
  end
end

local function set_back(now, by)
  -- A server that is out of memory refuses to add, unless the script has written before.
  redis.call('DEL', clock)
  for _, key in ipairs({leases, reservations, orphans}) do
    move(key, by)
  end
  move(retry, by / 1000)
  for _, lock in ipairs({sweep_lock, reclaim_lock}) do
    local left = redis.call('PTTL', lock)
    if left > by then
      redis.call('PEXPIRE', lock, integer(left - by))
    elseif left > 0 then
      redis.call('DEL', lock)
    end
  end
  redis.call('SET', clock, integer(now), 'PX', A_DAY)
end

local noted
local function now_ms()
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  noted = tonumber(redis.pcall('GET', clock))
  if noted and now < noted - SMALL_STEP then
    set_back(now, noted - now)
  end
  return now
end

-- Notes the time as long as anything waits for one.
local function note_time(now)
  for _, key in ipairs({leases, retry, reservations, orphans}) do
    if redis.call('EXISTS', key) == 1 then
      redis.pcall('SET', clock, integer(now), 'PX', A_DAY)
      return
    end
  end
  redis.call('DEL', clock)
end

-- Notes the time if nobody has yet, where the first deadline is set.
local function begin_time(now)
  if not noted then
    redis.pcall('SET', clock, integer(now), 'PX', A_DAY)
  end
end

-- Leaves no key behind when the last job has ended.
local function forget_time()
  if redis.call('EXISTS', leases, retry, reservations, orphans) == 0 then
    redis.call('DEL', clock)
  end
end

-- Live jobs of a tenant. A count that is no number is mended by the recount.
local function live_of(tenant)
  local count = redis.pcall('GET', tenant_prefix .. tenant)
  return type(count) == 'string' and tonumber(count) or 0
end

-- The id of a node's live job; false if it has none.
local function live_job(node)
  local job = redis.pcall('GET', pending_prefix .. node)
  return type(job) == 'table' and '?' or job
end

-- Takes jobs off a tenant's count. A count of zero leaves no key.
local function release(tenant, jobs)
  local key = tenant_prefix .. tenant
  local left = redis.pcall('DECRBY', key, jobs)
  if type(left) == 'number' and left <= 0 then
    redis.call('DEL', key)
  end
end

-- A foreign producer lets its counts expire; one that counts a job of ours must not.
local function charge(tenant, jobs)
  local key = tenant_prefix .. tenant
  redis.pcall('INCRBY', key, jobs)
  redis.call('PERSIST', key)
end

-- Makes a tenant's count what it must be. Answers whether it was another, and whether it was no string.
local function correct(tenant, actual)
  local key, right = tenant_prefix .. tenant, integer(actual)
  local counted = redis.pcall('GET', key) or '0'
  if actual == 0 or type(counted) == 'table' then
    redis.call('DEL', key)
  end
  if actual ~= 0 and counted ~= right then
    redis.call('SET', key, right)
  end
  return counted ~= right, type(counted) == 'table'
end

-- Takes an entry from under its lease; false when the token does not hold one any more.
local function take(token)
  local entry = redis.call('HGET', inflight, token)
  if entry then
    redis.call('HDEL', inflight, token)
    redis.call('ZREM', leases, token)
    redis.pcall('SREM', started, token)
  end
  return entry
end

-- Stands in the place of a job for a newer text when the node is gone.
local GONE = 'gone'

-- What takes the place of the node's live job: id and entry of the job for a newer text, or GONE; nil
-- if nothing does.
local function successor_of(node)
  local successor = redis.pcall('HGET', changed, node)
  if type(successor) ~= 'string' or successor == GONE then
    return successor == GONE and GONE or nil
  end
  return string.match(successor, '^(%S+) (.*)$')
end

-- Puts the job for a newer text in the place of the node's live one, if there is such a text.
local function succeed(node)
  local job, entry = successor_of(node)
  if not entry then
    return false
  end
  redis.call('HDEL', changed, node)
  redis.call('SET', pending_prefix .. node, job)
  redis.call('LPUSH', queue, entry)
  return true
end

-- Ends a job: its node may be enqueued again, its tenant has one less. Answers whether a job for a
-- newer text has taken its place.
local function finish(node, tenant)
  if node == '' then
    return false
  end
  if succeed(node) then
    return true
  end
  redis.pcall('HDEL', changed, node)
  redis.call('DEL', pending_prefix .. node)
  release(tenant, 1)
  return false
end

-- The jobs that a reservation counts, by tenant.
local function reserved_by(reservation)
  local ok, content = pcall(cjson.decode, reservation)
  return ok and type(content) == 'table' and type(content.tenants) == 'table' and content.tenants
    or {}
end

-- Tells of each tenant of each reservation how many jobs that counts.
local function each_reserved(tell)
  for _, reservation in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
    for tenant, jobs in pairs(reserved_by(reservation)) do
      tell(tenant, jobs)
    end
  end
end

-- Gives the counts of a reservation back, if it is still there.
local function cancel(reservation)
  if redis.call('ZREM', reservations, reservation) == 1 then
    for tenant, jobs in pairs(reserved_by(reservation)) do
      release(tenant, jobs)
    end
  end
end

-- How many are in a structure; none if the key holds another type, which is reported elsewhere.
local function size(command, key)
  local count = redis.pcall(command, key)
  return type(count) == 'number' and count or 0
end

-- Jobs in the queue, in flight and waiting for a retry, and those that are still to be published.
-- A reservation whose process died gives its counts back here.
local function depth()
  for _, stale in ipairs(redis.call('ZRANGEBYSCORE', reservations, '-inf', integer(now_ms()))) do
    cancel(stale)
  end
  local jobs = size('LLEN', queue) + size('HLEN', inflight) + size('ZCARD', retry)
  each_reserved(function(_, reserved)
    jobs = jobs + reserved
  end)
  return jobs
end

-- The node of a job, and the job, if it had to be decoded. Decoding is dear, so a job of ours, or of a
-- producer in Python, is read where it says it.
local function node_of(entry)
  local node = string.match(entry, '^"node_id":"([%x-]+)"', 50)
    or string.match(entry, '^"node_id": "([%x-]+)"', 52)
  if node then
    return node
  end
  local ok, job = pcall(cjson.decode, entry)
  if ok and type(job) == 'table' and type(job.node_id) == 'string' then
    return job.node_id, job
  end
end

-- Whether an entry is a job of the node. Decoding is dear, and most entries do not even hold the
-- characters of its id.
local function is_of(entry, node)
  if not string.find(entry, node, 1, true) then
    return false
  end
  local ok, job = pcall(cjson.decode, entry)
  return ok and type(job) == 'table' and job.node_id == node
end

-- Where in the queue a job of the node waits, if it is among so many entries at the left.
local function place_in_queue(node, most)
  for first = 0, math.min(redis.call('LLEN', queue), most) - 1, 1000 do
    for i, entry in ipairs(redis.call('LRANGE', queue, first, first + 999)) do
      if is_of(entry, node) then
        return first + i - 1
      end
    end
  end
end

-- The entry that waits for the next attempt of the node, if there is one. What other programs put there
-- is looked for where it is not much.
local function waiting_retry(node)
  local entry = redis.pcall('HGET', retrying, node)
  if type(entry) == 'string' and redis.call('ZSCORE', retry, entry) then
    return entry
  end
  local waiting = redis.call('ZCARD', retry)
  if waiting <= 1000 and waiting > size('HLEN', retrying) then
    for _, entry in ipairs(redis.call('ZRANGE', retry, 0, -1)) do
      if is_of(entry, node) then
        return entry
      end
    end
  end
end

-- Takes an entry out of those that wait for their next attempt.
local function stop_waiting(entry, node)
  redis.pcall('HDEL', retrying, node)
  return redis.call('ZREM', retry, entry)
end
