-- Stands before every batch script (see scripts.py). All of them get the same keys, in the order of keys.BatchKeys,
-- and no other: one slot of a Redis cluster. Times are the server's, in milliseconds.
--
-- A request in the queue is an entry `line:offset:length:attempts`; `attempts` are those that failed. One under
-- suspicion, to be run alone, ends with `:alone`. While it is leased or delayed its entry stands in ENTRIES instead;
-- while leased with `@` behind it and the time at which the attempt began, which is empty until then.
local BATCH, QUEUE, LEASES, ENTRIES, FENCES, RESULTS, VALIDATOR, SETTLED, DELAYED, ATTEMPTS = unpack(KEYS, 1, 10)
local CLAIMS, JOURNAL, STREAM = unpack(KEYS, 11)

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Redis that is out of memory refuses a write that takes memory, unless the script has made one before that takes none: it
-- does not break off in the middle. This is such a write, and changes nothing. It comes first in every move by which
-- requests that were accepted get on, as in the end that frees memory; what takes in more does not call it.
local function go_on_without_memory()
  redis.call('HDEL', BATCH, '')
end

-- Results are frozen once it is decided how the batch will end: the files are being assembled from them.
local function is_frozen()
  return redis.call('HEXISTS', BATCH, 'outcome') == 1
end

-- Of a paused batch nothing is claimed; what runs goes on, and the completion window is what it was.
local function is_paused()
  return redis.call('HEXISTS', BATCH, 'paused_at_ms') == 1
end

-- True while this claim of the line is the newest and its lease was not taken away.
local function holds_lease(line, fence)
  return redis.call('HGET', FENCES, line) == fence and redis.call('ZSCORE', LEASES, line) ~= false
end

-- The journal of a line: a head `tokens|revision` and parts `line:0`, `line:1` ... of as many tokens each. See journal.py.
local PART_TOKENS, TOKEN_CHARACTERS = 128, 3

-- How many tokens are journaled of a line (0: none), and of which revision of the model.
local function read_journal_head(line)
  local head = redis.call('HGET', JOURNAL, line)
  if not head then
    return 0, nil
  end
  local count, revision = string.match(head, '^(%d+)|(.*)$')
  return tonumber(count), revision
end

-- `revision|tokens`, or an empty text where nothing is journaled.
local function read_journal(line)
  local count, revision = read_journal_head(line)
  if count == 0 then
    return ''
  end
  local fields = {}
  for part = 0, math.floor((count - 1) / PART_TOKENS) do
    fields[#fields + 1] = line .. ':' .. part
  end
  return revision .. '|' .. table.concat(redis.call('HMGET', JOURNAL, unpack(fields)))
end

local function forget_journal(line)
  local count = read_journal_head(line)
  if count > 0 then
    redis.call('HDEL', JOURNAL, line)
    for part = 0, math.floor((count - 1) / PART_TOKENS) do
      redis.call('HDEL', JOURNAL, line .. ':' .. part)
    end
  end
end

-- Records the one result of a line; the caller counts it. Whoever comes later finds the result, so that the fence is not
-- needed any more.
local function settle(line, result)
  redis.call('HSET', RESULTS, line, result)
  redis.call('RPUSH', SETTLED, line)
  if redis.call('ZREM', LEASES, line) == 0 then
    redis.call('ZREM', DELAYED, line)
  end
  redis.call('HDEL', ENTRIES, line)
  redis.call('HDEL', FENCES, line)
  forget_journal(line)
end

-- Moves a batch in progress to `finalizing` in the same instant in which its last result is recorded. Who waits for a flex
-- request hears of it; the entry is one more than its stream may have.
local function finalize_if_done()
  local batch = redis.call('HMGET', BATCH, 'status', 'total', 'completed', 'failed')
  if batch[1] == 'in_progress' and tonumber(batch[3]) + tonumber(batch[4]) >= tonumber(batch[2]) then
    redis.call('HSET', BATCH, 'status', 'finalizing', 'outcome', 'completed', 'finalizing_at_ms', now_ms())
    if redis.call('HEXISTS', BATCH, 'flex') == 1 then
      redis.call('XADD', STREAM, '*', 'done', '1')
      redis.call('PEXPIRE', STREAM, 600000)
    end
  end
end

-- Ends a lease without counting an attempt: the request can be claimed again at once, before all others. One to be run
-- alone goes to DELAYED, so that there is one place where such requests wait.
local function put_back(line, entry)
  redis.call('ZREM', LEASES, line)
  if string.sub(entry, -6) == ':alone' then
    redis.call('HSET', ENTRIES, line, entry)
    redis.call('ZADD', DELAYED, now_ms(), line)
  else
    redis.call('HDEL', ENTRIES, line)
    redis.call('LPUSH', QUEUE, entry)
  end
end
