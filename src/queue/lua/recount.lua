-- Compares pending keys, tenant counts and leases with the jobs that are really there, and
-- mends what differs.
-- ARGV: 3 most jobs looked at (and as many kB), 4 age (ms) at which a pending key without a job is
--       given up, 5 how many nodes follow, then pairs: node with a pending key, its tenant or '?',
--       then the tenants that have a count
-- Answer: {'deep'} | {'ask', node, …}
--         | {'done', counts mended, keys mended, leases mended, keys given up,
--            tenants whose count held another type, …}
-- The caller has listed the keys, page by page: a scan in here would hold the server for as long
-- as the whole keyspace takes. A key that came since is looked at next time.
-- A pending key without a job may belong to a foreign consumer at work, which still counts for
-- its tenant; which tenant that is, only the caller knows: 'ask' wants to be called again.
local wrong = wrong_type(queue, retry, inflight, leases, reservations, orphans)
if wrong then return wrong end

if depth() > tonumber(ARGV[3]) then
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
-- An entry can be as large as a server takes.
local bytes = 0
local function see_all(command, key, jobs)
  for first = 0, jobs - 1, 50 do
    for _, entry in ipairs(redis.call(command, key, first, first + 49)) do
      bytes = bytes + #entry
      if bytes > ARGV[3] * 1024 then
        return false
      end
      see(entry)
    end
  end
  return true
end
for _, token in ipairs(redis.call('HKEYS', inflight)) do
  local entry = redis.call('HGET', inflight, token)
  bytes = bytes + #entry
  if bytes > ARGV[3] * 1024 then
    return {'deep'}
  end
  see(entry)
end
if not see_all('LRANGE', queue, redis.call('LLEN', queue))
  or not see_all('ZRANGE', retry, redis.call('ZCARD', retry)) then
  return {'deep'}
end
each_reserved(count)

local last_node = 5 + 2 * tonumber(ARGV[5])
local ask, without_job = {'ask'}, {}
for i = 6, last_node, 2 do
  local node, tenant = ARGV[i], ARGV[i + 1]
  if not live[node] and redis.call('EXISTS', pending_prefix .. node) == 1 then
    without_job[node] = tenant
    if tenant == '?' then ask[#ask + 1] = node end
  end
end
if #ask > 1 then
  return ask
end

-- Pending keys without a job: they count for their tenant until they are given up.
local given_up = 0
for _, node in ipairs(redis.call('ZRANGE', orphans, 0, -1)) do
  if not without_job[node] then redis.call('ZREM', orphans, node) end
end
for node, tenant in pairs(without_job) do
  redis.call('ZADD', orphans, 'NX', integer(now), node)
  if now - tonumber(redis.call('ZSCORE', orphans, node)) >= tonumber(ARGV[4]) then
    redis.call('ZREM', orphans, node)
    redis.call('DEL', pending_prefix .. node)
    given_up = given_up + 1
  elseif tenant ~= '' then
    count(tenant, 1)
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
local answer = {'done', 0, keys, leased, given_up}
for i = last_node + 1, #ARGV do count(ARGV[i], 0) end
for tenant, actual in pairs(counts) do
  local was_wrong, was_mistyped = correct(tenant, actual)
  mended = mended + (was_wrong and 1 or 0)
  answer[#answer + 1] = was_mistyped and tenant or nil
end
answer[2] = mended
return answer
