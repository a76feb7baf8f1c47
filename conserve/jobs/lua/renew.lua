-- Prolongs leases. ARGV: lease in ms, then line, fence, line, fence ...
-- Result: 1 when the batch is not in progress any more (else 0), then the lines whose lease is not the caller's.
-- A lease that ran out but was not yet taken away is prolonged: after an outage of Redis that saves the work.
go_on_without_memory()
local ends = now_ms() + tonumber(ARGV[1])
local running = redis.call('HGET', BATCH, 'status') == 'in_progress' and not is_frozen()
local result = { running and 0 or 1 }
for i = 2, #ARGV, 2 do
  local line = ARGV[i]
  if holds_lease(line, ARGV[i + 1]) then
    redis.call('ZADD', LEASES, ends, line)
  else
    result[#result + 1] = tonumber(line)
  end
end
return result
