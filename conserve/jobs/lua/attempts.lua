-- Reads attempts that are to end. ARGV: how many leases that ran out (0: none), then lines.
-- Result: the time, then for each: line, fence, entry, earlier failures as JSON (empty: none).
-- Reads only: what follows from it is done by retry.lua, which looks whether the lease is still the same.
local lines = {}
for i = 2, #ARGV do
  lines[#lines + 1] = ARGV[i]
end
local now, limit = now_ms(), tonumber(ARGV[1])
if limit > 0 then
  lines = redis.call('ZRANGE', LEASES, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
end
local found = { now }
for _, line in ipairs(lines) do
  local fence = redis.call('HGET', FENCES, line)
  if fence and redis.call('ZSCORE', LEASES, line) then
    found[#found + 1] = line
    found[#found + 1] = fence
    found[#found + 1] = redis.call('HGET', ENTRIES, line)
    found[#found + 1] = redis.call('HGET', ATTEMPTS, line) or ''
  end
end
return found
