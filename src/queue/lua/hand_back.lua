-- Puts jobs back in their place, as if they had not been claimed; where the text has changed
-- meanwhile, the job for the newer text takes over.
-- ARGV: of each job, in claim order: token, node (may be empty)
-- Answer: how many tokens held a job
local wrong = wrong_type(inflight, leases, queue)
if wrong then return wrong end

local entries, held = {}, 0
for i = #ARGV - 1, 3, -2 do
  local entry = take(ARGV[i])
  if entry then
    held = held + 1
    if not succeed(ARGV[i + 1]) then
      entries[#entries + 1] = entry
    end
  end
end
push('RPUSH', queue, entries)
note(entries, #entries, 1)
forget_time()
return held
