-- Records a file. KEYS: file. ARGV: field, value ... Result: when it was recorded first, server milliseconds.
-- A repeated call changes nothing: the files of a batch have ids that follow from the batch's.
local created = redis.call('HGET', KEYS[1], 'created_at_ms')
if created then
  return tonumber(created)
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'created_at_ms', now)
for i = 1, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return now
