-- Makes a cluster's controller the one that is at work, or lets it stay so. KEYS: the lease. ARGV: cluster, ms for which it
-- holds from now on. Result: the cluster whose controller is at work now.
-- A controller of the same cluster takes its predecessor's place at once. The deletion makes it go on when Redis is out of
-- memory, see `go_on_without_memory` in _batch.lua.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return holder
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
