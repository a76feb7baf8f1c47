-- Takes away leases that ran out. ARGV: most attempts, how many leases in this call, reason. Result: how many it took.
if redis.call('HGET', BATCH, 'status') ~= 'in_progress' or is_frozen() then
  return 0
end
local max_attempts = tonumber(ARGV[1])
local lines = redis.call('ZRANGE', LEASES, '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, line in ipairs(lines) do
  local entry = redis.call('HGET', LEASED, line)
  if entry then
    put_back(line, entry, true, max_attempts, ARGV[3])
  else
    redis.call('ZREM', LEASES, line)
  end
end
finalize_if_done()
return #lines
