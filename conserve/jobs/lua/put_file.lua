-- Records a file. KEYS: file. ARGV: ms until it expires (0: never), then field, value ...
-- Result: when it was recorded first and when it expires (0: never), server milliseconds.
-- A repeated call changes nothing: the files of a batch have ids that follow from the batch's.
-- It goes on when Redis is out of memory, as in `go_on_without_memory`: else no batch could end. Uploads are refused before.
redis.call('HDEL', KEYS[1], '')
local found = redis.call('HMGET', KEYS[1], 'created_at_ms', 'expires_at_ms')
if found[1] then
  return { tonumber(found[1]), tonumber(found[2] or 0) }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expires = 0
redis.call('HSET', KEYS[1], 'created_at_ms', now)
if tonumber(ARGV[1]) > 0 then
  expires = now + tonumber(ARGV[1])
  redis.call('HSET', KEYS[1], 'expires_at_ms', expires)
end
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return { now, expires }
