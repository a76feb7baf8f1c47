-- Takes a batch from the active ones, and gives back what it has of its tenant's quotas. INDEX: to take it from as well,
-- if it is given. ARGV: batch id.
redis.call('ZREM', ACTIVE, ARGV[1])
redis.call('ZREM', FLEX, ARGV[1])
redis.call('ZREM', FLEX_OVER, ARGV[1])
if INDEX then
  redis.call('ZREM', INDEX, ARGV[1])
end
drop(ARGV[1])
return 1
