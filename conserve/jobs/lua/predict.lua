-- Says when a batch in progress will be done. ARGV: that time in ms, or empty: it is not known. Result: 1, or 0 when it
-- is not in progress: of what has ended, and of a paused batch, nothing is predicted.
if redis.call('HGET', BATCH, 'status') ~= 'in_progress' then
  return 0
end
if ARGV[1] == '' or is_paused() then
  redis.call('HDEL', BATCH, 'predicted_end_at_ms')
else
  redis.call('HSET', BATCH, 'predicted_end_at_ms', ARGV[1])
end
return 1
