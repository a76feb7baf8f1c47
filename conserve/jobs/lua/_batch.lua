-- Stands before every batch script (see scripts.py). All of them get the same keys, in the order of keys.BatchKeys,
-- and no other: one slot of a Redis cluster. Times are the server's, in milliseconds.
local BATCH, QUEUE, LEASES, LEASED, FENCES, RESULTS, VALIDATOR, SETTLED = unpack(KEYS)

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Results are frozen once it is decided how the batch will end: the files are being assembled from them.
local function is_frozen()
  return redis.call('HEXISTS', BATCH, 'outcome') == 1
end

-- Of a paused batch nothing is claimed; what runs goes on, and the completion window is what it was.
local function is_paused()
  return redis.call('HEXISTS', BATCH, 'paused_at_ms') == 1
end

-- Records the one result of a line. `counter` is `completed` or `failed`.
local function settle(line, result, counter)
  redis.call('HSET', RESULTS, line, result)
  redis.call('RPUSH', SETTLED, line)
  redis.call('HINCRBY', BATCH, counter, 1)
  redis.call('ZREM', LEASES, line)
  redis.call('HDEL', LEASED, line)
end

-- Moves a batch in progress to `finalizing` in the same instant in which its last result is recorded.
local function finalize_if_done()
  local batch = redis.call('HMGET', BATCH, 'status', 'total', 'completed', 'failed')
  if batch[1] == 'in_progress' and tonumber(batch[3]) + tonumber(batch[4]) >= tonumber(batch[2]) then
    redis.call('HSET', BATCH, 'status', 'finalizing', 'outcome', 'completed', 'finalizing_at_ms', now_ms())
  end
end

-- Takes a lease away. The request goes to the front of the queue, or, when this was its last attempt, is recorded as
-- an error: a request that brings down every replica that runs it must not go round for ever.
local function put_back(line, entry, count_attempt, max_attempts, reason)
  redis.call('ZREM', LEASES, line)
  redis.call('HDEL', LEASED, line)
  local range, attempts = string.match(entry, '^(%d+:%d+:%d+):(%d+)$')
  attempts = tonumber(attempts)
  if count_attempt then
    attempts = attempts + 1
  end
  if count_attempt and attempts >= max_attempts then
    local message = 'Given up after ' .. attempts .. ' attempts. The last one: ' .. reason
    settle(line, 'error||max_attempts_exceeded|' .. message, 'failed')
  else
    redis.call('LPUSH', QUEUE, range .. ':' .. attempts)
  end
end
