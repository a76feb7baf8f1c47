-- Ends the work on a batch whose completion window is over. Result: 1 when this call did it.
-- A batch still in validation is not touched: once its lines are known they can all be named in the error file.
go_on_without_memory()
local batch = redis.call('HMGET', BATCH, 'status', 'expires_at_ms')
local now = now_ms()
if batch[1] ~= 'in_progress' or now < tonumber(batch[2]) then
  return 0
end
redis.call('HSET', BATCH, 'status', 'finalizing', 'outcome', 'expired', 'finalizing_at_ms', now)
return 1
