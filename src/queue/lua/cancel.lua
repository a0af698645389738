-- Gives a reservation back. ARGV: 3 the reservation
cancel(ARGV[3])
return 1
