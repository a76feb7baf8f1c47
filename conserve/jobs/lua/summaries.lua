-- Reads what the controller needs to know of some batches. KEYS: the hash of each; the others of its keys are named after
-- it (keys.py). ARGV: fields. Result: one line a batch: the values of the fields, how many requests can be claimed and how
-- many are leased as a JSON array (absent fields are false), or `null` when there is no such batch. One answer for many:
-- with a thousand batches four times a second, calls and taking answers apart would be most of the work.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local lines = {}
for index, batch in ipairs(KEYS) do
  local summary = redis.call('HMGET', batch, unpack(ARGV))
  if summary[1] then
    summary[#ARGV + 1] = redis.call('LLEN', batch .. ':queue')
      + redis.call('ZCOUNT', batch .. ':delayed', '-inf', now_ms)
    summary[#ARGV + 2] = redis.call('ZCARD', batch .. ':leases')
    lines[index] = cjson.encode(summary)
  else
    lines[index] = 'null'
  end
end
return table.concat(lines, '\n')
