-- Makes the caller the one validator of a batch and starts its queue anew.
-- ARGV: token of the caller, ms for which it holds without a further call.
-- Result: 1 acquired, 0 somebody else holds it, -1 the batch is not (or no longer) to be validated.
-- Nothing is claimable before `start`, so a half-filled queue of a validator that crashed is simply dropped.
local batch = redis.call('HMGET', BATCH, 'status', 'total', 'outcome')
if (batch[1] ~= 'validating' and batch[1] ~= 'cancelling') or batch[2] or batch[3] then
  return -1
end
local holder = redis.call('GET', VALIDATOR)
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', VALIDATOR, ARGV[1], 'PX', ARGV[2])
redis.call('DEL', QUEUE)
return 1
