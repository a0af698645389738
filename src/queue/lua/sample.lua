-- Some of the jobs that wait, as they are. ARGV: 3 how many on the left, where the newest are,
--       4 places between the two ends, 5 how many at each, 6 the longest entry (bytes)
local wrong = wrong_type(queue)
if wrong then return wrong end

local length, found = redis.call('LLEN', queue), {}
local function look(first, entries)
  for place = first, math.min(first + entries, length) - 1 do
    local entry = redis.call('LINDEX', queue, place)
    if entry and #entry <= tonumber(ARGV[6]) then
      found[#found + 1] = entry
    end
  end
end
local newest, places = tonumber(ARGV[3]), tonumber(ARGV[4])
look(0, newest)
for place = 0, places - 1 do
  look(newest + math.floor(math.max(length - newest, 0) * place / places), tonumber(ARGV[5]))
end
return found
