-- KEYS: job
-- ARGV: prefix, id, attempt, result ttl ms
-- A job handed back by its worker: no crash. Returns 0 where it was not the worker's.
if not holds(KEYS[1], ARGV[3]) then
  return 0
end
if redis.call('HGET', KEYS[1], 'cancel') then
  settle(ARGV[1], ARGV[2], 'cancelled', tonumber(ARGV[4]), '')
else
  requeue(ARGV[1], ARGV[2], 'released')
end
return 1
