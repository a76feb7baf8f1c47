-- Puts a batch into the indexes, unless too many are active or a quota is in the way. KEYS after those of _ledger.lua:
-- the index of its tenant's batches; none for a flex request, which is in no list.
-- ARGV: most active batches, or flex requests if it is one, then as `hold` wants it: batch id ...
-- Result: {}, {'active'} when there are too many, or name, limit and present use of the quota.
-- A repeated call changes nothing.
local INDEX, id = KEYS[5], ARGV[2]
if redis.call('ZSCORE', ACTIVE, id) then
  return {}
end
local count = redis.call('ZCARD', FLEX)
if INDEX then
  count = redis.call('ZCARD', ACTIVE) - count
end
if count >= tonumber(ARGV[1]) then
  return { 'active' }
end
local refused = hold(2)
if refused then
  return refused
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', ACTIVE, now, id)
redis.call('ZADD', INDEX or FLEX, now, id)
return {}
