-- Makes data of schema 1 those of schema 2, all or nothing. KEYS: schema, batches, active batches, ended batches.
-- ARGV: what the keys of batches begin with; the schema they are of then; ms for which results of ended ones are kept.
-- Result: how many batches there were; how many requests are leased now (then nothing was changed: somebody of the older
-- version is at work) and until when. Of another schema than 1 nothing is done.
--
-- In schema 1 a leased request stood in `leased`; there were no delays, no order of the results, no index of ended batches.
local SCHEMA, BATCHES, ACTIVE, ENDED = unpack(KEYS)
local prefix, schema, kept_ms = ARGV[1], ARGV[2], ARGV[3]
if redis.call('GET', SCHEMA) ~= '1' then
  return { 0, 0, 0 }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ids = redis.call('ZRANGE', BATCHES, 0, -1)

local at_work, last = 0, now
for _, id in ipairs(ids) do
  local leases = prefix .. '{' .. id .. '}:leases'
  local count = redis.call('ZCOUNT', leases, '(' .. now, '+inf')
  if count > 0 then
    at_work = at_work + count
    last = math.max(last, tonumber(redis.call('ZREVRANGE', leases, 0, 0, 'WITHSCORES')[2]))
  end
end
if at_work > 0 then
  return { #ids, at_work, last - now }
end

for _, id in ipairs(ids) do
  local batch = prefix .. '{' .. id .. '}'
  local leased = redis.call('HGETALL', batch .. ':leased')
  for i = 1, #leased, 2 do
    if redis.call('HEXISTS', batch .. ':results', leased[i]) == 0 then
      redis.call('LPUSH', batch .. ':queue', leased[i + 1])
    end
  end
  redis.call('DEL', batch .. ':leased', batch .. ':leases')

  local results = redis.call('HGETALL', batch .. ':results')
  local lines = {}
  for i = 1, #results, 2 do
    lines[#lines + 1] = tonumber(results[i])
  end
  table.sort(lines)
  for _, line in ipairs(lines) do
    redis.call('RPUSH', batch .. ':settled', line)
  end
  if redis.call('EXISTS', batch) == 1 and not redis.call('ZSCORE', ACTIVE, id) then
    redis.call('HSET', batch, 'settled', #lines)
    redis.call('PEXPIRE', batch .. ':settled', kept_ms)
    redis.call('ZADD', ENDED, now, id)
  end
end
redis.call('SET', SCHEMA, schema)
return { #ids, 0, 0 }
