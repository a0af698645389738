-- Enqueues nodes that have no live job.
-- ARGV: 3 maximum depth, 4 maximum live jobs of a tenant (each -1: no limit),
--       then of each job: node, tenant, job id, entry
-- Answer: of each job, 'new', 'full', 'tenant' (its tenant has no room), or the id of the job
--         that is live already, prefixed 'live:'
local wrong = wrong_type(queue, reservations)
if wrong then return wrong end

local max_depth, max_tenant = tonumber(ARGV[3]), tonumber(ARGV[4])
local jobs_in_all = depth()
local entries, answers = {}, {}
for i = 5, #ARGV, 4 do
  local node, tenant, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local live = live_job(node)
  local answer
  if live then
    answer = 'live:' .. live
  elseif max_depth >= 0 and jobs_in_all >= max_depth then
    answer = 'full'
  elseif max_tenant > 0 and live_of(tenant) >= max_tenant then
    answer = 'tenant'
  else
    redis.call('SET', pending_prefix .. node, job)
    charge(tenant, 1)
    entries[#entries + 1] = ARGV[i + 3]
    jobs_in_all = jobs_in_all + 1
    answer = 'new'
  end
  answers[#answers + 1] = answer
end
push('LPUSH', queue, entries)
return answers
