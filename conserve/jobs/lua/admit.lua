-- Puts a batch into the indexes, unless too many are active or a quota is in the way. A flex request is in no index of
-- batches (INDEX). ARGV: most active batches, or flex requests that wait, if it is one; most flex requests that wait to be
-- deleted; then as `hold` wants it: batch id ...
-- Result: {}, {'active'} or {'over'} when there are too many, or name, limit and present use of the quota.
-- A repeated call changes nothing.
local id = ARGV[3]
if redis.call('ZSCORE', ACTIVE, id) then
  return {}
end
local count, over = redis.call('ZCARD', FLEX), redis.call('ZCARD', FLEX_OVER)
if INDEX then
  count = redis.call('ZCARD', ACTIVE) - count - over
elseif ARGV[2] ~= '' and over >= tonumber(ARGV[2]) then
  return { 'over' }
end
if count >= tonumber(ARGV[1]) then
  return { 'active' }
end
local refused = hold(3)
if refused then
  return refused
end
local now = now_ms()
redis.call('ZADD', ACTIVE, now, id)
redis.call('ZADD', INDEX or FLEX, now, id)
return {}
