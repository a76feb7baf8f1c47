-- Takes a batch from the active ones, and gives back what it has of its tenant's quotas. INDEX: to take it from as well, if
-- it is given, or with `ended` to put it into. ARGV: batch id, `ended` or nothing. Result: 1.
redis.call('ZREM', ACTIVE, ARGV[1])
redis.call('ZREM', FLEX, ARGV[1])
redis.call('ZREM', FLEX_OVER, ARGV[1])
if ARGV[2] == 'ended' then
  redis.call('ZADD', INDEX, 'NX', now_ms(), ARGV[1])
elseif INDEX then
  redis.call('ZREM', INDEX, ARGV[1])
end
drop(ARGV[1])
return 1
