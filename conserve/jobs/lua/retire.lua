-- Takes a batch from the active ones, and gives back what it has of its tenant's quotas. KEYS after those of _ledger.lua:
-- an index to take it from as well, if any, or with `ended` one to put it into. ARGV: batch id, `ended` or nothing.
-- Result: 1.
redis.call('ZREM', ACTIVE, ARGV[1])
redis.call('ZREM', FLEX, ARGV[1])
if ARGV[2] == 'ended' then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[5], 'NX', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), ARGV[1])
elseif KEYS[5] then
  redis.call('ZREM', KEYS[5], ARGV[1])
end
drop(ARGV[1])
return 1
