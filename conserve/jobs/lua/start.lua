-- Ends a validation that found nothing wrong: the requests become claimable, all at once.
-- ARGV: token, number of requests, model, prefix of the prompts, then field, value ... Result: 1; -1 and -2 as in
-- enqueue_chunk.lua.
-- A batch cancelled meanwhile stays so; it only learns how many requests it has.
go_on_without_memory()
if redis.call('GET', VALIDATOR) ~= ARGV[1] then
  return -1
end
if redis.call('LLEN', QUEUE) ~= tonumber(ARGV[2]) then
  return -2
end
redis.call('HSET', BATCH, 'total', ARGV[2], 'model', ARGV[3], 'prefix', ARGV[4])
for i = 5, #ARGV, 2 do
  redis.call('HSET', BATCH, ARGV[i], ARGV[i + 1])
end
if redis.call('HGET', BATCH, 'status') == 'validating' then
  redis.call('HSET', BATCH, 'status', 'in_progress', 'in_progress_at_ms', now_ms())
end
redis.call('DEL', VALIDATOR)
return 1
