-- Reads what the controller needs to know of a batch. ARGV: fields. Result: their values, how many requests can be
-- claimed and how many are leased as one JSON array (absent fields are false), or false when there is no such batch.
-- One short answer: with a thousand batches four times a second, taking answers apart is most of the client's work.
if redis.call('EXISTS', BATCH) == 0 then
  return false
end
local summary = redis.call('HMGET', BATCH, unpack(ARGV))
summary[#ARGV + 1] = redis.call('LLEN', QUEUE) + redis.call('ZCOUNT', DELAYED, '-inf', now_ms())
summary[#ARGV + 2] = redis.call('ZCARD', LEASES)
return cjson.encode(summary)
