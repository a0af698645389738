-- Puts jobs back in their place, as if they had not been claimed. ARGV: tokens, in claim order
local wrong = wrong_type(inflight, leases, started, queue)
if wrong then return wrong end

local entries = {}
for i = #ARGV, 3, -1 do
  entries[#entries + 1] = take(ARGV[i]) or nil
end
push('RPUSH', queue, entries)
return #entries
