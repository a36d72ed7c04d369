-- KEYS: job
-- ARGV: prefix, id, attempt, name, data
if not holds(KEYS[1], ARGV[3]) then
  return 0
end
emit(ARGV[1], ARGV[2], ARGV[4], ARGV[5])
return 1
