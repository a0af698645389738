-- Ends jobs for good. ARGV: 3 most entries kept, 4 '1': only if the lease has expired,
--       then of each job: token, node (may be empty), tenant, dead letter
-- Answer: {tokens that held no job any more, entries evicted}
-- Where the text has changed meanwhile, the job for the newer text takes over, and nothing is buried.
local wrong = wrong_type(inflight, leases, dlq, queue)
if wrong then return wrong end

local now, stale = now_ms(), 0
for i = 5, #ARGV, 4 do
  local expired = tonumber(redis.call('ZSCORE', leases, ARGV[i]) or 0) <= now
  if (ARGV[4] ~= '1' or expired) and take(ARGV[i]) then
    -- The job for a newer text will speak for the node.
    if not finish(ARGV[i + 1], ARGV[i + 2]) then
      redis.call('LPUSH', dlq, ARGV[i + 3])
    end
  else
    stale = stale + 1
  end
end
forget_time()
local evicted = math.max(redis.call('LLEN', dlq) - ARGV[3], 0)
if evicted > 0 then
  redis.call('LTRIM', dlq, 0, ARGV[3] - 1)
end
return {stale, evicted}
