-- Freezes the results of a cancelled batch: once nothing runs any more, or after a grace time for what still ran.
-- ARGV: grace time in ms. Result: 1 when the batch is frozen now.
go_on_without_memory()
local batch = redis.call('HMGET', BATCH, 'status', 'total', 'outcome', 'cancelling_at_ms')
if batch[1] ~= 'cancelling' or not batch[2] then
  return 0
end
if not batch[3] then
  if redis.call('ZCARD', LEASES) > 0 and now_ms() < tonumber(batch[4]) + tonumber(ARGV[1]) then
    return 0
  end
  redis.call('HSET', BATCH, 'outcome', 'cancelled', 'finalizing_at_ms', now_ms())
end
return 1
