-- Looks through some jobs of a structure: each gets the pending key and the lease that it lacks, and its
-- node is no orphan.
-- ARGV: 3 'queue' (newest first), 'retry' or 'inflight', 4 cursor: '0', then the one answered
-- Answer: {next cursor ('' at the end), pending keys mended, leases mended, node, …}
-- In the queue the cursor is a place by the books of the fair order, which stays where it is while new
-- jobs come and go to the left of it. A job that moves may be seen twice, or not at all.
local wrong = wrong_type(queue, retry, inflight, leases, orphans)
if wrong then return wrong end

local MOST_JOBS, MOST_BYTES = 500, 1048576
local now, entries, tokens, bytes, cursor = now_ms(), {}, {}, 0, ARGV[4]
-- Each page costs the way to its place, so that few are read.
local many = 50
local new, total
if ARGV[3] == 'queue' then
  new, total = unread(redis.call('LLEN', queue)), book('total')
  local number = match(cursor, '^n(%-?%d+)$')
  if number then
    cursor = integer(math.max((new or 0) + total - tonumber(number), 0))
  end
end
repeat
  local found = {}
  if ARGV[3] == 'inflight' then
    local page = redis.call('HSCAN', inflight, cursor, 'COUNT', 50)
    cursor = page[1] ~= '0' and page[1] or ''
    for i = 1, #page[2], 2 do
      tokens[#tokens + 1], found[#found + 1] = page[2][i], page[2][i + 1]
    end
  else
    local command, key = 'LRANGE', queue
    if ARGV[3] == 'retry' then
      command, key = 'ZRANGE', retry
    end
    found = redis.call(command, key, cursor, cursor + many - 1)
    cursor = #found == many and integer(cursor + many) or ''
  end
  for _, entry in ipairs(found) do
    entries[#entries + 1], bytes = entry, bytes + #entry
  end
  local rest = math.floor((MOST_BYTES - bytes) * #entries / math.max(bytes, 1))
  many = math.max(1, math.min(MOST_JOBS - #entries, rest, 4 * many))
until cursor == '' or #entries >= MOST_JOBS or bytes >= MOST_BYTES

if new and cursor ~= '' and tonumber(cursor) >= new then
  cursor = 'n' .. integer(new + total - cursor)
end

local nodes, keys, leased = {}, 0, 0
for _, entry in ipairs(entries) do
  local node, job = node_of(entry)
  if node then
    nodes[#nodes + 1] = node
    -- A key that a foreign producer lets expire must not, before the job ends.
    if redis.call('PERSIST', pending_prefix .. node) == 0 and not live_job(node) then
      local ok
      if not job then
        ok, job = pcall(cjson.decode, entry)
      end
      local id = type(job) == 'table' and type(job.job_id) == 'string' and job.job_id or '1'
      redis.call('SET', pending_prefix .. node, id)
      keys = keys + 1
    end
  end
end
for _, token in ipairs(tokens) do
  if not redis.call('ZSCORE', leases, token) then
    redis.call('ZADD', leases, integer(now), token)
    leased = leased + 1
  end
end
if redis.call('ZCARD', orphans) > 0 then
  push('ZREM', orphans, nodes)
end
local answer = {cursor, keys, leased}
for _, node in ipairs(nodes) do
  answer[#answer + 1] = node
end
return answer
