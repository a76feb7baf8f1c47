-- Writes a new batch. A repeated call (a retry after a lost answer) changes nothing.
-- ARGV: window in ms; entry `line:offset:length` of the only request, which can be claimed at once (empty: the batch is
-- to be validated); then field, value, field, value ...
if redis.call('EXISTS', BATCH) == 1 then
  return 0
end
local now = now_ms()
redis.call('HSET', BATCH, 'status', 'validating', 'created_at_ms', now, 'expires_at_ms', now + tonumber(ARGV[1]),
  'completed', 0, 'failed', 0, 'prompt_tokens', 0, 'completion_tokens', 0, 'fence_counter', 0)
for i = 3, #ARGV, 2 do
  redis.call('HSET', BATCH, ARGV[i], ARGV[i + 1])
end
if ARGV[2] ~= '' then
  redis.call('RPUSH', QUEUE, ARGV[2] .. ':0')
  redis.call('HSET', BATCH, 'status', 'in_progress', 'in_progress_at_ms', now)
end
return 1
