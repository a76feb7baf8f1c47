-- Marks a file as read by a batch, so that it is not deleted. KEYS: file, its users. ARGV: batch id.
-- Result: the purpose of the file, or false when there is no such file.
local purpose = redis.call('HGET', KEYS[1], 'purpose')
if purpose then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), ARGV[1])
end
return purpose
