-- Reads new entries where many came at once, so that the tenants among them get their turns.
-- Answer: how many are still to be read
local wrong = wrong_type(queue)
if wrong then return wrong end

begin_writing()
local length = redis.call('LLEN', queue)
local new = unread(length)
if not new or new <= MOST_NEW then
  return 0
end
return read(length, new)
