-- How many jobs are where. ARGV: 3 how many of the jobs next in line are looked at for their age
-- Answer: {waiting, waiting for a retry, dead letters, in flight, oldest enqueued_at or ''}
-- An entry can be as large as a server takes, so each stays here, and only its beginning is read.
local oldest
for i = 1, math.min(tonumber(ARGV[3]), size('LLEN', queue)) do
  local beginning = string.sub(redis.call('LINDEX', queue, -i), 1, 4096)
  local at = tonumber(string.match(beginning, '"enqueued_at"%s*:%s*([%d.eE+-]+)'))
  if at and at > 0 and (not oldest or at < oldest) then
    oldest = at
  end
end
return {
  size('LLEN', queue), size('ZCARD', retry), size('LLEN', dlq), size('HLEN', inflight),
  oldest and string.format('%.3f', oldest) or '',
}
