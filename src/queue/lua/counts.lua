-- Compares the counts of some tenants with the jobs that are there, at any depth: the books of the fair
-- order know how many wait in the queue.
-- ARGV: 3 most jobs looked at, then of each tenant: name, jobs of it that are with a foreign consumer
-- Answer: {'unknown'} | {'done', counts mended, tenants whose count held another type, …}
local wrong = wrong_type(queue, retry, inflight, reservations)
if wrong then return wrong end

local length, most, bytes, counts = redis.call('LLEN', queue), tonumber(ARGV[3]), 0, {}
local new = unread(length)
local are_known = new and book('lost') == 0
new = are_known and new or length
if new + redis.call('ZCARD', retry) + redis.call('HLEN', inflight) > most then
  return {'unknown'}
end
local function see(entries)
  for _, entry in ipairs(entries) do
    bytes = bytes + #entry
    if node_of(entry) then
      add(counts, tenant_of(entry), 1)
    end
  end
  return bytes <= most * 512
end
for first = 0, new - 1, 50 do
  if not see(redis.call('LRANGE', queue, first, math.min(first + 49, new - 1))) then
    return {'unknown'}
  end
end
for first = 0, redis.call('ZCARD', retry) - 1, 50 do
  if not see(redis.call('ZRANGE', retry, first, first + 49)) then
    return {'unknown'}
  end
end
for _, token in ipairs(redis.call('HKEYS', inflight)) do
  if not see({redis.call('HGET', inflight, token)}) then
    return {'unknown'}
  end
end
each_reserved(function(tenant, jobs)
  add(counts, tenant, jobs)
end)

local fields = {}
for i = 4, #ARGV, 2 do
  fields[#fields + 1] = 'of ' .. ARGV[i]
end
local waiting, mended, answer = are_known and books_of(fields) or {}, 0, {'done', 0}
for i = 4, #ARGV, 2 do
  local tenant = ARGV[i]
  local actual = (waiting['of ' .. tenant] or 0) + (counts[tenant] or 0) + ARGV[i + 1]
  local was_wrong, was_mistyped = correct(tenant, actual)
  mended = mended + (was_wrong and 1 or 0)
  answer[#answer + 1] = was_mistyped and tenant or nil
end
answer[2] = mended
return answer
