-- Makes sure that the new text of a node gets a job.
-- ARGV: 3 the reservation, 4 node, 5 tenant, 6 job id, 7 entry
-- Answer: the id of the job that will see the new text
local wrong = wrong_type(reservations, queue, retry)
if wrong then return wrong end

local reserved = redis.call('ZREM', reservations, ARGV[3]) == 1
local node, tenant, job, entry = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not live_job(node) then
  redis.call('SET', pending_prefix .. node, job)
  redis.call('LPUSH', queue, entry)
  if not reserved then
    charge(tenant, 1)
  end
  return job
end
if reserved then
  release(tenant, 1)
end
local waiting = waiting_retry(node)
if waiting then
  -- The failed attempts were those of the older text.
  stop_waiting(waiting, node)
  forget_time()
  redis.call('SET', pending_prefix .. node, job)
  redis.call('LPUSH', queue, entry)
  return job
end
-- Wherever its live job is: from the queue this one is claimed in its place, as one that has not
-- failed; and a holder that has read the older text is followed by it.
redis.pcall('HSET', changed, node, job .. ' ' .. entry)
return job
