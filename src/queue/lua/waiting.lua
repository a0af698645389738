-- Tenants in the books of the fair order. ARGV: 3 cursor. Answer: {next cursor ('0' at the end), tenant, …}
if misuse(fair) then
  return {'0'}
end
local page = redis.call('HSCAN', fair, ARGV[3], 'COUNT', 500)
local answer = {page[1]}
for i = 1, #page[2], 2 do
  answer[#answer + 1] = string.match(page[2][i], '^of (.+)$')
end
return answer
