-- Says why a batch does not get on. ARGV: the reason, or empty: it does. Nothing is written where there is no batch.
go_on_without_memory()
if ARGV[1] == '' then
  return redis.call('HDEL', BATCH, 'delayed_because')
end
if redis.call('EXISTS', BATCH) == 1 then
  redis.call('HSET', BATCH, 'delayed_because', ARGV[1])
end
return 1
