-- Puts a recorded file into its indexes. KEYS: due files, then the indexes of its tenant's files. ARGV: file id, when it was
-- recorded, when it expires (0: never), server milliseconds. It goes on when Redis is out of memory, as put_file.lua does.
redis.call('ZREM', KEYS[1], ARGV[1])
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[2], ARGV[1])
end
if ARGV[3] ~= '0' then
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
