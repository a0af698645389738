-- Gives a reservation back. ARGV: 3 the reservation
local wrong = wrong_type(reservations)
if wrong then return wrong end

cancel(ARGV[3])
return 1
