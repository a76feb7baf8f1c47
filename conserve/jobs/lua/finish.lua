-- Ends a batch whose files are written. ARGV: output file id, error file id (empty: there is none), lines in the output
-- file, lines in the error file, ms for which claims and results are kept. Result: the status it has now.
-- They are kept for a while so that a failover to an older state still finds them, and a stream of results goes on.
go_on_without_memory()
local batch = redis.call('HMGET', BATCH, 'status', 'outcome')
local status, outcome = batch[1], batch[2]
if not outcome or status == outcome then
  return status
end
redis.call('HSET', BATCH, 'status', outcome, outcome .. '_at_ms', now_ms(), 'completed', ARGV[3], 'failed', ARGV[4],
  'settled', redis.call('LLEN', SETTLED))
if ARGV[1] ~= '' then
  redis.call('HSET', BATCH, 'output_file_id', ARGV[1])
end
if ARGV[2] ~= '' then
  redis.call('HSET', BATCH, 'error_file_id', ARGV[2])
end
redis.call('DEL', QUEUE, LEASES, ENTRIES, DELAYED, CLAIMS, JOURNAL)
for _, key in ipairs({ FENCES, RESULTS, ATTEMPTS, SETTLED }) do
  redis.call('PEXPIRE', key, ARGV[5])
end
return outcome
