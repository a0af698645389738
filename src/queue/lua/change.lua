-- Makes sure that the new text of a node gets a job.
-- ARGV: 3 the reservation, 4 node, 5 tenant, 6 job id, 7 entry, 8 most entries looked at
-- Answer: the id of the job that will see the new text
local wrong = wrong_type(reservations, queue, retry, inflight)
if wrong then return wrong end

local reserved = redis.call('ZREM', reservations, ARGV[3]) == 1
local node, tenant, job, entry = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local live = live_job(node)
if not live then
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
  redis.call('ZREM', retry, waiting)
  forget_time()
  redis.call('SET', pending_prefix .. node, job)
  redis.call('LPUSH', queue, entry)
  return job
end
if is_in_flight(node) then
  -- Its holder may have read the older text, and may be about to end the job.
  redis.pcall('HSET', changed, node, job .. ' ' .. entry)
  return job
end
-- A job in the queue reads the text when its turn comes. One that has failed, or lost a worker, did
-- so with the older text: it gives its place to the new one.
local place = place_in_queue(node, tonumber(ARGV[8]))
if place then
  local waits = cjson.decode(redis.call('LINDEX', queue, place))
  if (tonumber(waits.attempts) or 0) + (tonumber(waits.lost) or 0) > 0 then
    redis.call('LSET', queue, place, entry)
    redis.call('SET', pending_prefix .. node, job)
    return job
  end
end
return live
