-- KEYS: job, pend, seq, jobs, jobs of the owner [, idempotency key]
-- ARGV: prefix, id, request hash, queue limit, priority, idempotency ms, then the fields of the job
-- Returns {"created" | "known" | "conflict", record}, or {"full", depth}.
local prefix, id, request_hash = ARGV[1], ARGV[2], ARGV[3]

local first = KEYS[6] and redis.call('GET', KEYS[6]) or id
local same = redis.call('HGET', prefix .. 'job:' .. first, 'request_hash')
if same then
  return {same == request_hash and 'known' or 'conflict', record(prefix, first)}
end

local depth = redis.call('ZCARD', KEYS[2])
if depth >= tonumber(ARGV[4]) then
  return {'full', depth}
end

local seq = redis.call('INCR', KEYS[3])
-- Priority, then first come first served; exact in a double for 12 bits of priority.
local score = int(seq - tonumber(ARGV[5]) * 2 ^ 40)
redis.call('HSET', KEYS[1], 'state', 'queued', 'request_hash', request_hash, 'score', score, 'attempt', 0,
  'crashes', 0, 'done', 0, 'created_ms', int(now_ms()), unpack(ARGV, 7))
redis.call('ZADD', KEYS[4], seq, id)
redis.call('ZADD', KEYS[5], seq, id)
if KEYS[6] then
  redis.call('SET', KEYS[6], id, 'PX', ARGV[6])
end
enqueue(prefix, id)
return {'created', record(prefix, id)}
