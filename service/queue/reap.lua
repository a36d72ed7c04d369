-- KEYS: lease, models
-- ARGV: prefix, most crashes without progress, result ttl ms, problem of a job with that many, most jobs at once
-- Returns the ids of the jobs that were taken from workers which let their leases run out.
local prefix = ARGV[1]
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now_ms()), 'LIMIT', 0, ARGV[5])
for _, id in ipairs(ids) do
  local job = prefix .. 'job:' .. id
  local crashes = 0
  if redis.call('HGET', job, 'proven') ~= '1' then
    crashes = redis.call('HINCRBY', job, 'crashes', 1)
  end
  if redis.call('HGET', job, 'cancel') then
    settle(prefix, id, 'cancelled', tonumber(ARGV[3]), '')
  elseif crashes >= tonumber(ARGV[2]) then
    settle(prefix, id, 'failed', tonumber(ARGV[3]), ARGV[4])
  else
    requeue(prefix, id, 'lost')
  end
end

-- A worker that dies between taking a mark and claiming takes the wake-up with it: put it back.
for _, model in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if redis.call('ZCARD', prefix .. 'pend:' .. model) > 0 then
    redis.call('ZADD', prefix .. 'mark:' .. model, 0, '1')
  else
    redis.call('SREM', KEYS[2], model)
    redis.call('DEL', prefix .. 'mark:' .. model)
  end
end
return ids
