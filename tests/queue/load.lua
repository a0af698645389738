-- Puts many jobs on the queue, as a producer that writes them in bulk: oldest first.
-- KEYS: 1 the queue; ARGV: 1 how many, 2 name of the tenants, 3 how many of them, 4 number of the first
local many, tenants, first = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
math.randomseed(first)
local entries = {}
for i = 1, many do
  local id = string.format('%08x-0000-4000-8000-%012x', first, i)
  local tenant = tenants == 1 and ARGV[2] or ARGV[2] .. math.random(1, tenants)
  entries[#entries + 1] = '{"job_id":"' .. id .. '","node_id":"' .. id .. '","tenant_id":"' .. tenant
    .. '","action":"embed","attempts":0,"enqueued_at":1795477681.46}'
  if #entries == 1000 or i == many then
    redis.call('LPUSH', KEYS[1], unpack(entries))
    entries = {}
  end
end
return redis.call('LLEN', KEYS[1])
