-- Lets a paused batch go on; another one stays as it is. Result: the status it has, false when it is unknown.
local status = redis.call('HGET', BATCH, 'status')
if status == 'validating' or status == 'in_progress' then
  redis.call('HDEL', BATCH, 'paused_at_ms')
end
return status
