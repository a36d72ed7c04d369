-- What every script below begins with. `prefix` is the namespace's, e.g. "{ebm}:"; keys that depend on what a
-- script finds are built from it, and share the one hash tag, so that each script is atomic on a cluster too.

local EVENTS_KEPT = 1000

-- Leases and times are by the server's clock alone, so that the workers' clocks need not agree.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Lua's tostring keeps 14 digits; scores and milliseconds need 16.
local function int(x)
  return string.format('%.0f', x)
end

local function emit(prefix, id, name, data)
  redis.call('XADD', prefix .. 'ev:' .. id, 'MAXLEN', '~', EVENTS_KEPT, '*', 'name', name, 'data', data)
end

-- Whether a worker still holds the job under this attempt; the fence before every write of a worker.
local function holds(job, attempt)
  local found = redis.call('HMGET', job, 'state', 'attempt')
  return found[1] == 'running' and found[2] == attempt
end

local function enqueue(prefix, id)
  local found = redis.call('HMGET', prefix .. 'job:' .. id, 'model', 'score')
  redis.call('ZADD', prefix .. 'pend:' .. found[1], found[2], id)
  redis.call('ZADD', prefix .. 'mark:' .. found[1], 0, '1')
  redis.call('SADD', prefix .. 'models', found[1])
end

-- Back into the queue with the old score, that is to the front of its priority.
local function requeue(prefix, id, reason)
  redis.call('ZREM', prefix .. 'lease', id)
  redis.call('HSET', prefix .. 'job:' .. id, 'state', 'queued')
  enqueue(prefix, id)
  emit(prefix, id, 'requeued', cjson.encode({reason = reason}))
end

-- Into a terminal state; queue, lease and expiry agree with it from here on.
local function settle(prefix, id, state, ttl_ms, problem)
  local job, now = prefix .. 'job:' .. id, now_ms()
  local expires = int(now + ttl_ms)
  redis.call('ZREM', prefix .. 'lease', id)
  redis.call('HSET', job, 'state', state, 'finished_ms', int(now), 'expires_ms', expires)
  redis.call('HDEL', job, 'checkpoint')
  if problem ~= '' then
    redis.call('HSET', job, 'problem', problem)
  end
  redis.call('ZADD', prefix .. 'exp', expires, id)
  emit(prefix, id, 'done', cjson.encode({status = state}))
end

-- A job's id and fields, and how many wait before it (-1 where it does not wait itself).
local function record(prefix, id)
  local fields = redis.call('HGETALL', prefix .. 'job:' .. id)
  local model = redis.call('HGET', prefix .. 'job:' .. id, 'model')
  local rank = model and redis.call('ZRANK', prefix .. 'pend:' .. model, id)
  return {id, fields, rank or -1}
end
