-- Ends a validation that found something wrong. ARGV: token, the errors as JSON. Result: 1, or -1 as in start.lua.
go_on_without_memory()
if redis.call('GET', VALIDATOR) ~= ARGV[1] then
  return -1
end
local status = 'failed'
if redis.call('HGET', BATCH, 'status') == 'cancelling' then
  status = 'cancelled'
end
redis.call('HSET', BATCH, 'status', status, status .. '_at_ms', now_ms(), 'errors', ARGV[2])
redis.call('DEL', QUEUE, VALIDATOR)
return 1
