-- Puts the jobs of a reservation on the queue.
-- ARGV: 3 the reservation, then of each job: node, tenant, job id, entry
-- A node that has a live job by now (the sweep was faster) is not enqueued again.
local wrong = wrong_type(reservations, queue)
if wrong then return wrong end

local reserved = redis.call('ZREM', reservations, ARGV[3]) == 1
local left = reserved and reserved_by(ARGV[3]) or {}
local entries = {}
for i = 4, #ARGV, 4 do
  local node, tenant, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  left[tenant] = (left[tenant] or 0) - 1
  if redis.call('SET', pending_prefix .. node, job, 'NX') then
    entries[#entries + 1] = ARGV[i + 3]
    if not reserved then
      charge(tenant, 1)
    end
  elseif reserved then
    release(tenant, 1)
  end
end
-- Nodes that were counted, and then refused.
for tenant, jobs in pairs(left) do
  if jobs > 0 then release(tenant, jobs) end
end
push('LPUSH', queue, entries)
return #entries
