-- Ends jobs that are done. ARGV: of each job: token, node, tenant
-- Answer: how many tokens held no job any more
local wrong = wrong_type(inflight, leases, queue)
if wrong then return wrong end

local stale = 0
for i = 3, #ARGV, 3 do
  if take(ARGV[i]) then
    finish(ARGV[i + 1], ARGV[i + 2])
  else
    stale = stale + 1
  end
end
forget_time()
return stale
