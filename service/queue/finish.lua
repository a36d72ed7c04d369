-- KEYS: job
-- ARGV: prefix, id, attempt, status, result ttl ms, result, problem, diagnostics ("" where absent)
-- Returns 1 where this attempt finished the job, now or before (its reply was lost); else 0.
local job, status = KEYS[1], ARGV[4]
if not holds(job, ARGV[3]) then
  local found = redis.call('HMGET', job, 'attempt', 'finished_by')
  return found[1] == ARGV[3] and found[2] == ARGV[3] and 1 or 0
end
-- A cancellation that was accepted holds, even where the last sweep was faster.
if status == 'succeeded' and redis.call('HGET', job, 'cancel') then
  status = 'cancelled'
end
redis.call('HSET', job, 'finished_by', ARGV[3])
if ARGV[8] ~= '' then
  redis.call('HSET', job, 'diagnostics', ARGV[8])
end
if status == 'succeeded' then
  redis.call('HSET', job, 'done', redis.call('HGET', job, 'total'), 'eta_s', 0)
  if ARGV[6] ~= '' then
    redis.call('HSET', job, 'result', ARGV[6])
  end
end
settle(ARGV[1], ARGV[2], status, tonumber(ARGV[5]), ARGV[7])
return 1
