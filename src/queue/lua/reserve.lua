-- Admission of one request, decided and counted before a row is written.
-- ARGV: 3 maximum depth, 4 maximum live jobs of a tenant (0: none), 5 time to live (ms),
--       6 the reservation: {"id": …, "tenants": {tenant: jobs, …}}
-- Answer: {'ok'} | {'depth'} | {'tenant', name}
local wrong = wrong_type(reservations, queue)
if wrong then return wrong end

local jobs_in_all = depth()
local wanted = cjson.decode(ARGV[6]).tenants
local tenant_limit = tonumber(ARGV[4])
for tenant, jobs in pairs(wanted) do
  jobs_in_all = jobs_in_all + jobs
  if tenant_limit > 0 and live_of(tenant) + jobs > tenant_limit then
    return {'tenant', tenant}
  end
end
if jobs_in_all > tonumber(ARGV[3]) then
  return {'depth'}
end

-- First what a server that is out of memory refuses, so that nothing is counted then.
redis.call('ZADD', reservations, integer(now_ms() + ARGV[5]), ARGV[6])
for tenant, jobs in pairs(wanted) do
  charge(tenant, jobs)
end
return {'ok'}
