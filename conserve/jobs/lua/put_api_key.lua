-- Records an API key. KEYS: the keys, a hash: name -> record; the version of that hash. ARGV: name, record, new version, most keys.
-- Result: what stands in the way, `taken` or `full`; nothing if it is recorded. Again with the same record is no error, so that
-- a call whose answer was lost can be repeated.
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and there ~= ARGV[2] then
  return 'taken'
end
if not there and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return 'full'
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
return ''
