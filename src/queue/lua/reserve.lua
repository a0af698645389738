-- Admission of one request, decided and counted before a row is written.
-- ARGV: 3 maximum depth, 4 maximum live jobs of a tenant (0: none), 5 time to live (ms),
--       6 the reservation: {"id": …, "tenants": {tenant: jobs, …}}
-- Answer: {'ok'} | {'depth'} | {'tenant', name}

local now = now_ms()
local depth = redis.call('LLEN', queue) + redis.call('HLEN', inflight) + redis.call('ZCARD', retry)

-- A reservation whose process died gives its counts back here.
for _, stale in ipairs(redis.call('ZRANGEBYSCORE', reservations, '-inf', integer(now))) do
  cancel(stale)
end
for _, other in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
  for _, jobs in pairs(cjson.decode(other).tenants) do
    depth = depth + jobs
  end
end

local wanted = cjson.decode(ARGV[6]).tenants
local tenant_limit = tonumber(ARGV[4])
for tenant, jobs in pairs(wanted) do
  depth = depth + jobs
  local live = tonumber(redis.call('GET', tenant_prefix .. tenant) or 0)
  if tenant_limit > 0 and live + jobs > tenant_limit then
    return {'tenant', tenant}
  end
end
if depth > tonumber(ARGV[3]) then
  return {'depth'}
end

for tenant, jobs in pairs(wanted) do
  charge(tenant, jobs)
end
redis.call('ZADD', reservations, integer(now + ARGV[5]), ARGV[6])
return {'ok'}
