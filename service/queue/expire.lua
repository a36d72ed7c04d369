-- KEYS: exp, jobs
-- ARGV: prefix, ms that the record outlives the result, most jobs at once
-- Returns the ids whose files are to go. Each comes twice, when its result expires and when its record does, so that a
-- sweeper that died in between leaves no file for good.
local prefix, now = ARGV[1], now_ms()
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
  local job = prefix .. 'job:' .. id
  redis.call('DEL', prefix .. 'ev:' .. id)
  if redis.call('HGET', job, 'expired') then
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZREM', prefix .. 'jobs:' .. redis.call('HGET', job, 'owner'), id)
    redis.call('ZREM', KEYS[1], id)
    redis.call('DEL', job)
  else
    redis.call('HSET', job, 'expired', 1)
    redis.call('ZADD', KEYS[1], int(now + tonumber(ARGV[2])), id)
  end
end
return ids
