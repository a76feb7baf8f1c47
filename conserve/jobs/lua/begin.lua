-- Begins the attempt of a request to be run alone: the replica has waited until nothing else ran on it. A lease that
-- ends before does not count as an attempt. ARGV: line, fence. Result: 1, or 0 when the lease is not the caller's.
go_on_without_memory()
local line = ARGV[1]
if not holds_lease(line, ARGV[2]) then
  return 0
end
local entry = redis.call('HGET', ENTRIES, line)
if string.sub(entry, -1) == '@' then
  redis.call('HSET', ENTRIES, line, entry .. now_ms())
end
return 1
