-- Makes data of schema 1 those of schema 2, all or nothing. KEYS: schema, batches, active batches, ended batches, replicas
-- that have reported. ARGV: what the keys of batches begin with; what those of reports begin with; the schema they are of
-- then; ms for which results of ended batches are kept.
-- Result: how many batches there were; then, where an older program is at work and nothing was changed, how many requests are
-- leased, replicas report, and batches are being validated, and ms until the last lease ends.
-- Of another schema than 1 nothing is done.
--
-- In schema 1 a leased request stood in `leased`; there were no delays and no index of ended batches, and at first no order
-- of the results. An older program looks at the schema when it starts and never again, so it must not be there: it would
-- take away leases of the new kind and lose what they are for.
-- What schema 2 has of its own is put back likewise: a server that has lost its last second may have the schema of before.
local SCHEMA, BATCHES, ACTIVE, ENDED, REPLICAS = unpack(KEYS)
local prefix, reports, schema, kept_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('GET', SCHEMA) ~= '1' then
  return { 0, 0, 0, 0, 0 }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ids = redis.call('ZRANGE', BATCHES, 0, -1)

local leased, replicas, validating, last = 0, 0, 0, now
for _, replica in ipairs(redis.call('SMEMBERS', REPLICAS)) do
  replicas = replicas + redis.call('EXISTS', reports .. replica)
end
for _, id in ipairs(ids) do
  local batch = prefix .. '{' .. id .. '}'
  local count = redis.call('ZCOUNT', batch .. ':leases', '(' .. now, '+inf')
  if count > 0 then
    leased = leased + count
    last = math.max(last, tonumber(redis.call('ZREVRANGE', batch .. ':leases', 0, 0, 'WITHSCORES')[2]))
  end
  validating = validating + redis.call('EXISTS', batch .. ':validator')
end
if leased + replicas + validating > 0 then
  return { #ids, leased, replicas, validating, last - now }
end

redis.call('DEL', prefix)  -- Changes nothing; see `go_on_without_memory`.
local ended = { failed = true, completed = true, expired = true, cancelled = true }
for _, id in ipairs(ids) do
  local batch = prefix .. '{' .. id .. '}'
  for _, name in ipairs({ ':leased', ':entries' }) do
    local entries = redis.call('HGETALL', batch .. name)
    for i = 1, #entries, 2 do
      if redis.call('HEXISTS', batch .. ':results', entries[i]) == 0 then
        redis.call('LPUSH', batch .. ':queue', string.match(entries[i + 1], '^%d+:%d+:%d+:%d+'))
      end
    end
  end
  for _, name in ipairs({ ':leased', ':leases', ':entries', ':delayed', ':claims' }) do
    redis.call('DEL', batch .. name)
  end

  local results = redis.call('HGETALL', batch .. ':results')
  local lines = {}
  for i = 1, #results, 2 do
    lines[#lines + 1] = tonumber(results[i])
  end
  if redis.call('LLEN', batch .. ':settled') ~= #lines then
    table.sort(lines)
    redis.call('DEL', batch .. ':settled')
    for _, line in ipairs(lines) do
      redis.call('RPUSH', batch .. ':settled', line)
    end
  end
  local status = redis.call('HGET', batch, 'status')
  if status and ended[status] then
    redis.call('HSETNX', batch, 'settled', #lines)
    redis.call('PEXPIRE', batch .. ':settled', kept_ms)
    if not redis.call('ZSCORE', ACTIVE, id) then
      redis.call('ZADD', ENDED, now, id)
    end
  else
    -- Who still computes what it had leased commits it nowhere: it would not be in the order of the results.
    redis.call('DEL', batch .. ':fences')
  end
end
redis.call('SET', SCHEMA, schema)
return { #ids, 0, 0, 0, 0 }
