-- Says where requests are. ARGV: lines. Result: the state of each (batch.RequestState), false for no such line.
local total = tonumber(redis.call('HGET', BATCH, 'total') or 0)
local states = {}
for i, line in ipairs(ARGV) do
  local result = redis.call('HGET', RESULTS, line)
  if result then
    states[i] = string.sub(result, 1, 6) == 'output' and 'completed' or 'failed'
  elseif redis.call('ZSCORE', LEASES, line) then
    states[i] = 'leased'
  elseif redis.call('ZSCORE', DELAYED, line) then
    states[i] = 'delayed'
  else
    local number = tonumber(line)
    states[i] = number >= 1 and number <= total and 'ready'
  end
end
return states
