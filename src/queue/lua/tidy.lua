-- Forgets what is noted of nodes that it is not true of any more: jobs for newer texts of nodes that have
-- no job (those texts are found in the rows), and entries that do not wait for an attempt.
-- ARGV: 3 'changed' or 'retrying', 4 cursor. Answer: next cursor ('0' at the end)
local key = ARGV[3] == 'changed' and changed or retrying
if misuse(key) or misuse(retry) then
  return '0'
end
local page = redis.call('HSCAN', key, ARGV[4], 'COUNT', 200)
for i = 1, #page[2], 2 do
  local node, noted = page[2][i], page[2][i + 1]
  local is_true
  if key == changed then
    is_true = live_job(node)
  else
    is_true = redis.call('ZSCORE', retry, noted)
  end
  if not is_true then
    redis.call('HDEL', key, node)
  end
end
return page[1]
