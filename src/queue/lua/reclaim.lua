-- Puts jobs whose lease has expired back in their place. ARGV: of each job: token, new entry
local wrong = wrong_type(inflight, leases, started, queue)
if wrong then return wrong end

local now, entries = now_ms(), {}
for i = #ARGV - 1, 3, -2 do
  local deadline = redis.call('ZSCORE', leases, ARGV[i])
  if deadline and tonumber(deadline) <= now and take(ARGV[i]) then
    entries[#entries + 1] = ARGV[i + 1]
  end
end
push('RPUSH', queue, entries)
return #entries
