-- Keys that hold another type than they must. Answer: of each, what is wrong with it
local found = {}
for i = 1, #KEYS do
  found[#found + 1] = misuse(KEYS[i])
end
return found
