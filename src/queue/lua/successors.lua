-- Forgets jobs for newer texts whose nodes have no job any more: those texts are found in the rows.
-- ARGV: 3 cursor. Answer: next cursor ('0' at the end)
if misuse(changed) then
  return '0'
end
local page = redis.call('HSCAN', changed, ARGV[3], 'COUNT', 200)
for i = 1, #page[2], 2 do
  if not live_job(page[2][i]) then
    redis.call('HDEL', changed, page[2][i])
  end
end
return page[1]
