-- Marks a flex request that nobody waits for any more; one that is not done is cancelled. Result: 1, or 0 when there is
-- none.
go_on_without_memory()
local batch = redis.call('HMGET', BATCH, 'status', 'flex')
if not batch[2] then
  return 0
end
local now = now_ms()
redis.call('HSET', BATCH, 'let_go_at_ms', now)
if batch[1] == 'validating' or batch[1] == 'in_progress' then
  redis.call('HSET', BATCH, 'status', 'cancelling', 'cancelling_at_ms', now)
end
return 1
