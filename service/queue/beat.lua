-- KEYS: lease
-- ARGV: prefix, lease ms, then id, attempt of every job held
-- Returns "ok", "lost" or "cancel" for each of them, in order.
local deadline = int(now_ms() + tonumber(ARGV[2]))
local verdicts = {}
for i = 3, #ARGV, 2 do
  local job = ARGV[1] .. 'job:' .. ARGV[i]
  if holds(job, ARGV[i + 1]) then
    redis.call('ZADD', KEYS[1], deadline, ARGV[i])
    verdicts[#verdicts + 1] = redis.call('HGET', job, 'cancel') and 'cancel' or 'ok'
  else
    verdicts[#verdicts + 1] = 'lost'
  end
end
return verdicts
