-- Compares pending keys, tenant counts and leases with the jobs that are really there, and
-- mends what differs.
-- ARGV: 3 most jobs looked at, 4 age (ms) at which a pending key without a job is given up,
--       then pairs: node, tenant of nodes whose pending key has no job
-- Answer: {'deep'} | {'ask', node, …} | {'done', counts mended, keys mended, leases mended, keys given up}
-- A pending key without a job may belong to a foreign consumer at work, which still counts for
-- its tenant; which tenant that is, only the caller knows: 'ask' wants to be called again.

local depth = redis.call('LLEN', queue) + redis.call('HLEN', inflight) + redis.call('ZCARD', retry)
if depth > tonumber(ARGV[3]) then
  return {'deep'}
end
local now = now_ms()
local live, counts = {}, {}

local function count(tenant, jobs)
  counts[tenant] = (counts[tenant] or 0) + jobs
end
local function see(entry)
  local ok, job = pcall(cjson.decode, entry)
  if ok and type(job) == 'table' and type(job.node_id) == 'string' then
    live[job.node_id] = type(job.job_id) == 'string' and job.job_id or '1'
    count(type(job.tenant_id) == 'string' and job.tenant_id or 'default', 1)
  end
end
local function scan(prefix, visit)
  local pattern = string.gsub(prefix, '[%*%?%[%]\\]', '\\%0') .. '*'
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      visit(key, string.sub(key, #prefix + 1))
    end
  until cursor == '0'
end

for _, entry in ipairs(redis.call('LRANGE', queue, 0, -1)) do see(entry) end
for _, entry in ipairs(redis.call('ZRANGE', retry, 0, -1)) do see(entry) end
for _, entry in ipairs(redis.call('HVALS', inflight)) do see(entry) end
for _, reservation in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
  for tenant, jobs in pairs(cjson.decode(reservation).tenants) do count(tenant, jobs) end
end

local tenants = {}
for i = 5, #ARGV, 2 do tenants[ARGV[i]] = ARGV[i + 1] end
local ask, without_job = {'ask'}, {}
scan(pending_prefix, function(_, node)
  if not live[node] and not without_job[node] then
    without_job[node] = true
    if not tenants[node] then ask[#ask + 1] = node end
  end
end)
if #ask > 1 then
  return ask
end

-- Pending keys without a job: count them for their tenant until they are given up.
local given_up = 0
for _, node in ipairs(redis.call('ZRANGE', orphans, 0, -1)) do
  if not without_job[node] then redis.call('ZREM', orphans, node) end
end
for node in pairs(without_job) do
  redis.call('ZADD', orphans, 'NX', integer(now), node)
  if now - tonumber(redis.call('ZSCORE', orphans, node)) >= tonumber(ARGV[4]) then
    redis.call('ZREM', orphans, node)
    redis.call('DEL', pending_prefix .. node)
    given_up = given_up + 1
  elseif tenants[node] ~= '' then
    count(tenants[node], 1)
  end
end

-- Jobs without a pending key, or with one that a foreign producer lets expire.
local keys = 0
for node, job in pairs(live) do
  if redis.call('SET', pending_prefix .. node, job, 'NX') then
    keys = keys + 1
  else
    redis.call('PERSIST', pending_prefix .. node)
  end
end

-- Jobs in flight without a lease get one that has run out.
local leased = 0
for _, token in ipairs(redis.call('HKEYS', inflight)) do
  if not redis.call('ZSCORE', leases, token) then
    redis.call('ZADD', leases, integer(now), token)
    leased = leased + 1
  end
end

local mended = 0
scan(tenant_prefix, function(key, tenant)
  local actual = counts[tenant] or 0
  if redis.call('GET', key) ~= tostring(actual) then
    mended = mended + 1
    if actual == 0 then redis.call('DEL', key) else redis.call('SET', key, actual) end
  end
  counts[tenant] = nil
end)
for tenant, actual in pairs(counts) do
  redis.call('SET', tenant_prefix .. tenant, actual)
  mended = mended + 1
end
return {'done', mended, keys, leased, given_up}
