-- Stands before every script: names for the keys, and what several scripts do.
-- Entries are opaque here wherever that is possible: a JSON text that this server's cjson
-- decodes and encodes again is not the same text, so all rewriting is done by the caller.

local queue, retry, dlq = KEYS[1], KEYS[2], KEYS[3]
local inflight, leases = KEYS[4], KEYS[5]          -- token → entry, token → deadline (ms)
local reservations, fair, orphans = KEYS[6], KEYS[7], KEYS[8]
local started = KEYS[9]                            -- tokens whose text is with a model
local pending_prefix, tenant_prefix = ARGV[1] .. ':', ARGV[2] .. ':'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Lua numbers print with 14 digits, milliseconds since 1970 have 13.
local function integer(number)
  return string.format('%.0f', number)
end

-- Takes jobs off a tenant's count. A count of zero leaves no key.
local function release(tenant, jobs)
  local key = tenant_prefix .. tenant
  if redis.call('DECRBY', key, jobs) <= 0 then
    redis.call('DEL', key)
  end
end

-- A foreign producer lets its counts expire; one that counts a job of ours must not.
local function charge(tenant, jobs)
  local key = tenant_prefix .. tenant
  redis.call('INCRBY', key, jobs)
  redis.call('PERSIST', key)
end

-- Takes an entry from under its lease; false when the token does not hold one any more.
local function take(token)
  local entry = redis.call('HGET', inflight, token)
  if entry then
    redis.call('HDEL', inflight, token)
    redis.call('ZREM', leases, token)
    redis.call('SREM', started, token)
  end
  return entry
end

-- Ends a job: its node may be enqueued again, its tenant has one less.
local function finish(node, tenant)
  if node ~= '' then
    redis.call('DEL', pending_prefix .. node)
    release(tenant, 1)
  end
end

-- Gives the counts of a reservation back, if it is still there.
local function cancel(reservation)
  if redis.call('ZREM', reservations, reservation) == 1 then
    for tenant, jobs in pairs(cjson.decode(reservation).tenants) do
      release(tenant, jobs)
    end
  end
end

-- Jobs in the queue, in flight and waiting for a retry, and those that are still to be published.
-- A reservation whose process died gives its counts back here.
local function depth()
  for _, stale in ipairs(redis.call('ZRANGEBYSCORE', reservations, '-inf', integer(now_ms()))) do
    cancel(stale)
  end
  local jobs = redis.call('LLEN', queue) + redis.call('HLEN', inflight) + redis.call('ZCARD', retry)
  for _, reservation in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
    for _, reserved in pairs(cjson.decode(reservation).tenants) do
      jobs = jobs + reserved
    end
  end
  return jobs
end

-- Pushes many entries in few commands; `unpack` is bounded by the Lua stack.
local function push(command, key, entries)
  for first = 1, #entries, 1000 do
    redis.call(command, key, unpack(entries, first, math.min(first + 999, #entries)))
  end
end
