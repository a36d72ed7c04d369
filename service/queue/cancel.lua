-- KEYS: job
-- ARGV: prefix, id, result ttl ms
-- Returns the record as it is afterwards.
local prefix, id = ARGV[1], ARGV[2]
local found = redis.call('HMGET', KEYS[1], 'state', 'model')
if found[1] == 'queued' then
  redis.call('ZREM', prefix .. 'pend:' .. found[2], id)
  settle(prefix, id, 'cancelled', tonumber(ARGV[3]), '')
elseif found[1] == 'running' and redis.call('HSETNX', KEYS[1], 'cancel', 1) == 1 then
  redis.call('PUBLISH', prefix .. 'ctl', id)
end
return record(prefix, id)
