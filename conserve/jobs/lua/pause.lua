-- Pauses a batch; a paused one stays as it is. Result: the status it has, false when it is unknown.
local status = redis.call('HGET', BATCH, 'status')
if status == 'validating' or status == 'in_progress' then
  redis.call('HSETNX', BATCH, 'paused_at_ms', now_ms())
end
return status
