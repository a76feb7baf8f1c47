-- Marks a file as read by a batch, so that it is not deleted. KEYS: file, its users.
-- ARGV: batch id, its tenant, the tenant of files that name none.
-- Result: the purpose of the file, or false when the tenant has no such file (any more).
local file = redis.call('HMGET', KEYS[1], 'purpose', 'expires_at_ms', 'tenant')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if not file[1] or (file[2] and tonumber(file[2]) <= now) or (file[3] or ARGV[3]) ~= ARGV[2] then
  return false
end
redis.call('ZADD', KEYS[2], now, ARGV[1])
return file[1]
