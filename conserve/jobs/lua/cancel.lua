-- Cancels a batch. Result: the status it has now; `cancelling` when it is being cancelled, false when it is unknown.
go_on_without_memory()
local status = redis.call('HGET', BATCH, 'status')
if status == 'validating' or status == 'in_progress' then
  status = 'cancelling'
  redis.call('HSET', BATCH, 'status', status, 'cancelling_at_ms', now_ms())
end
return status
