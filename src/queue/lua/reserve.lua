-- Admission of one request, decided and counted before a row is written.
-- ARGV: 3 maximum depth, 4 maximum live jobs of a tenant (0: none), 5 time to live (ms),
--       6 the reservation: {"id": …, "tenants": {tenant: jobs, …}}
-- Answer: {'ok'} | {'depth'} | {'tenant', name}

local jobs_in_all = depth()
local wanted = cjson.decode(ARGV[6]).tenants
local tenant_limit = tonumber(ARGV[4])
for tenant, jobs in pairs(wanted) do
  jobs_in_all = jobs_in_all + jobs
  local live = tonumber(redis.call('GET', tenant_prefix .. tenant) or 0)
  if tenant_limit > 0 and live + jobs > tenant_limit then
    return {'tenant', tenant}
  end
end
if jobs_in_all > tonumber(ARGV[3]) then
  return {'depth'}
end

for tenant, jobs in pairs(wanted) do
  charge(tenant, jobs)
end
redis.call('ZADD', reservations, integer(now_ms() + ARGV[5]), ARGV[6])
return {'ok'}
