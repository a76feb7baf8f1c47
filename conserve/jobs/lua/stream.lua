-- Adds what a flex request has produced to its stream. ARGV: most entries, how long it is kept in ms, fence of the claim,
-- chunks. Result: 1, or 0 when the request is deleted: what comes late must leave nothing behind.
if redis.call('EXISTS', BATCH) == 0 then
  return 0
end
redis.call('XADD', STREAM, 'MAXLEN', '~', ARGV[1], '*', 'fence', ARGV[3], 'chunks', ARGV[4])
redis.call('PEXPIRE', STREAM, ARGV[2])
return 1
