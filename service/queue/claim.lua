-- KEYS: lease, then pend of each model
-- ARGV: prefix, room in chains, lease ms, worker, "1" where every job that the worker holds is proven, then the
--       models in the order of their keys
-- Returns {whether a suspect keeps the worker waiting, claims}; a claim is {id, attempt, fields...}.
--
-- A job with crashes is a suspect: whatever runs beside it may die with it. So it is handed out alone, to a worker
-- whose other jobs have all been checkpointed since they were claimed: were it to kill the worker, the crash would
-- count against it only. Nothing is handed out past it, or it would starve.
local prefix, room, quiet = ARGV[1], tonumber(ARGV[2]), ARGV[5] == '1'
local deadline = int(now_ms() + tonumber(ARGV[3]))
local claims, held_back = {}, 0

local function head()
  local best, best_score, queue
  for i = 2, #KEYS do
    local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
    if first[1] and (not best or tonumber(first[2]) < best_score) then
      best, best_score, queue = first[1], tonumber(first[2]), KEYS[i]
    end
  end
  return best, queue
end

while room > 0 do
  local id, queue = head()
  if not id then
    break
  end
  local job = prefix .. 'job:' .. id
  local suspect = tonumber(redis.call('HGET', job, 'crashes')) > 0
  if suspect and (#claims > 0 or not quiet) then
    held_back = 1
    break
  end
  redis.call('ZREM', queue, id)
  local attempt = redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'state', 'running', 'worker', ARGV[4], 'proven', 0)
  redis.call('HSETNX', job, 'started_ms', int(now_ms()))
  redis.call('ZADD', KEYS[1], deadline, id)
  emit(prefix, id, 'start', cjson.encode({attempt = attempt}))
  claims[#claims + 1] = {id, redis.call('HGETALL', job)}
  room = room - tonumber(redis.call('HGET', job, 'chains'))
  if suspect then
    break
  end
end

-- Whoever woke this worker took the mark; what is left must wake another.
for i = 2, #KEYS do
  if redis.call('ZCARD', KEYS[i]) > 0 then
    redis.call('ZADD', prefix .. 'mark:' .. ARGV[i + 4], 0, '1')
  end
end
return {held_back, claims}
