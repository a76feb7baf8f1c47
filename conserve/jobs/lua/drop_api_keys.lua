-- Takes API keys away. KEYS as in put_api_key.lua. ARGV: new version, names. Result: how many of them there were.
-- The deletion comes first: it makes the rest go on when Redis is out of memory, see `go_on_without_memory` in _batch.lua.
local count = 0
for i = 2, #ARGV do
  count = count + redis.call('HDEL', KEYS[1], ARGV[i])
end
redis.call('SET', KEYS[2], ARGV[1])
return count
