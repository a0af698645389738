-- Puts jobs whose lease has expired back in their place; where the text has changed meanwhile, the
-- job for the newer text takes over. ARGV: of each job: token, node, new entry
-- Answer: how many leases had expired
local wrong = wrong_type(inflight, leases, queue)
if wrong then return wrong end

local now, entries, reclaimed = now_ms(), {}, 0
for i = #ARGV - 2, 3, -3 do
  local deadline = redis.call('ZSCORE', leases, ARGV[i])
  if deadline and tonumber(deadline) <= now and take(ARGV[i]) then
    reclaimed = reclaimed + 1
    if not succeed(ARGV[i + 1]) then
      entries[#entries + 1] = ARGV[i + 2]
    end
  end
end
push('RPUSH', queue, entries)
note(entries, #entries, 1)
forget_time()
return reclaimed
