-- KEYS: job
-- ARGV: prefix, id, attempt, done, rate, eta_s, diagnostics, checkpoint, step, progress event ("" where absent)
-- Returns 0: not this worker's job any more; 1: noted; 2: noted, and the job is proven.
local job = KEYS[1]
if not holds(job, ARGV[3]) then
  return 0
end
redis.call('HSET', job, 'done', ARGV[4], 'rate', ARGV[5], 'eta_s', ARGV[6])
if ARGV[7] ~= '' then
  redis.call('HSET', job, 'diagnostics', ARGV[7])
end
if ARGV[8] ~= '' then
  -- A job that gets further between two crashes will end some day: only crashes on the same spot are held against it.
  if tonumber(ARGV[9]) > tonumber(redis.call('HGET', job, 'step') or -1) then
    redis.call('HSET', job, 'proven', 1, 'crashes', 0)
  end
  redis.call('HSET', job, 'checkpoint', ARGV[8], 'step', ARGV[9])
  emit(ARGV[1], ARGV[2], 'checkpoint', cjson.encode({step = tonumber(ARGV[9])}))
end
emit(ARGV[1], ARGV[2], 'progress', ARGV[10])
return redis.call('HGET', job, 'proven') == '1' and 2 or 1
