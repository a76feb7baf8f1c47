-- Leases requests from the front of the queue.
-- ARGV: how many, lease in ms, epoch of the claimer. Result: entry, fence, entry, fence ...
-- Entries of requests that a late commit has settled, or that are leased already, are dropped on the way: taking them
-- out of the middle of a list would be slow. The epoch keeps fences apart when a failover rewinds the counter.
if redis.call('HGET', BATCH, 'status') ~= 'in_progress' or is_frozen() or is_paused() then
  return {}
end
local count, ends, epoch = tonumber(ARGV[1]), now_ms() + tonumber(ARGV[2]), ARGV[3]
local claimed = {}
for _ = 1, count + 1000 do
  if #claimed >= 2 * count then
    break
  end
  local entry = redis.call('LPOP', QUEUE)
  if not entry then
    break
  end
  local line = string.match(entry, '^%d+')
  if redis.call('HEXISTS', RESULTS, line) == 0 and redis.call('HEXISTS', LEASED, line) == 0 then
    local fence = redis.call('HINCRBY', BATCH, 'fence_counter', 1) .. '-' .. epoch
    redis.call('HSET', FENCES, line, fence)
    redis.call('HSET', LEASED, line, entry)
    redis.call('ZADD', LEASES, ends, line)
    claimed[#claimed + 1] = entry
    claimed[#claimed + 1] = fence
  end
end
return claimed
