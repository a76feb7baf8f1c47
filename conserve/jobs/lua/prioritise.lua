-- Gives a batch another priority. ARGV: the priority. Result: the status it has, false when it is unknown.
local status = redis.call('HGET', BATCH, 'status')
if status == 'validating' or status == 'in_progress' then
  redis.call('HSET', BATCH, 'priority', ARGV[1])
end
return status
