-- Makes one more write. KEYS: the key to write. ARGV: ms for which it stays.
-- The deletion makes it go on when Redis is out of memory, see `go_on_without_memory` in _batch.lua.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
return 1
