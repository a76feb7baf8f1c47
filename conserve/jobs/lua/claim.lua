-- Leases requests: those whose delay is over, then from the front of the queue.
-- ARGV: how many, lease in ms, epoch of the claimer, token of this call. Result: entry, fence, journal, entry ... (see
-- read_journal).
-- The epoch keeps fences apart when a failover rewinds the counter. A repeated call (the same token: a retry after a lost
-- answer) gets what the first one got, also of a batch that was paused meanwhile; those leases would otherwise run out, and
-- count as attempts that failed.
-- A request to be run alone is handed out by itself. Entries of requests that a late commit has settled are dropped on the
-- way: taking them out of the middle of a list would be slow.
if redis.call('HGET', BATCH, 'status') ~= 'in_progress' or is_frozen() then
  return {}
end
go_on_without_memory()
local count, lease_ms, epoch, token = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local now = now_ms()
local claimed, lines = {}, {}

local previous = redis.call('HGET', CLAIMS, epoch)
if previous and string.sub(previous, 1, #token + 1) == token .. ' ' then
  local ending = '-' .. epoch
  for line in string.gmatch(string.sub(previous, #token + 2), '%d+') do
    local fence = redis.call('HGET', FENCES, line)
    if fence and string.sub(fence, -#ending) == ending and redis.call('ZSCORE', LEASES, line) then
      redis.call('ZADD', LEASES, now + lease_ms, line)
      claimed[#claimed + 1] = string.match(redis.call('HGET', ENTRIES, line), '^[^@]*')
      claimed[#claimed + 1] = fence
      claimed[#claimed + 1] = read_journal(line)
    end
  end
  if #claimed > 0 then
    return claimed
  end
end

if is_paused() then
  return {}
end

local number  -- Of the last fence.
local function lease(line, entry, began)
  -- All numbers at once; that some are left out does no harm.
  number = number and number + 1 or redis.call('HINCRBY', BATCH, 'fence_counter', count) - count + 1
  local fence = number .. '-' .. epoch
  redis.call('HSET', FENCES, line, fence)
  redis.call('HSET', ENTRIES, line, entry .. '@' .. began)
  redis.call('ZADD', LEASES, now + lease_ms, line)
  claimed[#claimed + 1] = entry
  claimed[#claimed + 1] = fence
  claimed[#claimed + 1] = read_journal(line)
  lines[#lines + 1] = line
end

local is_open = true
for _, line in ipairs(redis.call('ZRANGE', DELAYED, '-inf', now, 'BYSCORE', 'LIMIT', 0, count)) do
  local entry = redis.call('HGET', ENTRIES, line)
  local is_alone = string.sub(entry, -6) == ':alone'
  if is_alone and #lines > 0 then
    is_open = false
    break
  end
  redis.call('ZREM', DELAYED, line)
  lease(line, entry, is_alone and '' or now)
  if is_alone then
    is_open = false
    break
  end
end
if is_open then
  for _ = 1, count + 1000 do
    if #lines >= count then
      break
    end
    local entry = redis.call('LPOP', QUEUE)
    if not entry then
      break
    end
    local line = string.match(entry, '^%d+')
    if redis.call('HEXISTS', RESULTS, line) == 0 and redis.call('HEXISTS', ENTRIES, line) == 0 then
      lease(line, entry, now)
    end
  end
end
if #lines > 0 then
  redis.call('HSET', CLAIMS, epoch, token .. ' ' .. table.concat(lines, ','))
end
return claimed
