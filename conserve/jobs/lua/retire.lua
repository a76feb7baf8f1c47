-- Takes a batch from the active ones, and gives back what it has of its tenant's quotas. KEYS after those of _ledger.lua:
-- an index to take it from as well, if any. ARGV: batch id.
redis.call('ZREM', ACTIVE, ARGV[1])
redis.call('ZREM', FLEX, ARGV[1])
if KEYS[5] then
  redis.call('ZREM', KEYS[5], ARGV[1])
end
drop(ARGV[1])
return 1
