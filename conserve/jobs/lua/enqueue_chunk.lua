-- Appends requests to the queue of a batch that is being validated.
-- ARGV: token, ms for which it holds from now on, length the queue has before, then entries `line:offset:length`.
-- Result: length of the queue; -1 when the caller's token ran out or was replaced; -2 when the queue is not as the
-- caller left it. A repeated call (a retry after a lost answer) appends nothing.
if redis.call('GET', VALIDATOR) ~= ARGV[1] then
  return -1
end
local before, added = tonumber(ARGV[3]), #ARGV - 3
local length = redis.call('LLEN', QUEUE)
if length == before then
  for i = 4, #ARGV do
    redis.call('RPUSH', QUEUE, ARGV[i] .. ':0')
  end
elseif length ~= before + added then
  return -2
end
redis.call('PEXPIRE', VALIDATOR, ARGV[2])  -- After what takes memory, see `go_on_without_memory`.
return before + added
