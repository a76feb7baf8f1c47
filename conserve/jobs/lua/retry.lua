-- Ends attempts that failed: the requests are delayed, or recorded as errors.
-- ARGV: 1 to do so only where the lease has run out, else 0; then six for each: line, fence, delay in ms, 1 to run it
-- alone the next time, else 0; all its failures as JSON; the error `code|message` (empty: it is tried again).
-- Result: the lines for which it was done. A delay is a length of time, which is added to the server's clock.
-- An attempt at a request to be run alone that had not begun is no attempt: it is put back as it was.
local only_lapsed = ARGV[1] == '1'
if is_frozen() or (only_lapsed and redis.call('HGET', BATCH, 'status') ~= 'in_progress') then
  return {}
end
go_on_without_memory()
local now = now_ms()
local done = {}
for i = 2, #ARGV, 6 do
  local line = ARGV[i]
  if holds_lease(line, ARGV[i + 1]) and not (only_lapsed and tonumber(redis.call('ZSCORE', LEASES, line)) > now) then
    local entry, began = string.match(redis.call('HGET', ENTRIES, line), '^([^@]*)@(%d*)$')
    if began == '' then
      put_back(line, entry)
    else
      redis.call('HSET', ATTEMPTS, line, ARGV[i + 4])
      if ARGV[i + 5] ~= '' then
        settle(line, 'error||' .. ARGV[i + 5])
        redis.call('HINCRBY', BATCH, 'failed', 1)
      else
        local range, attempts = string.match(entry, '^(%d+:%d+:%d+):(%d+)')
        local mark = ARGV[i + 3] == '1' and ':alone' or ''
        redis.call('ZREM', LEASES, line)
        redis.call('HSET', ENTRIES, line, range .. ':' .. (tonumber(attempts) + 1) .. mark)
        redis.call('ZADD', DELAYED, now + tonumber(ARGV[i + 2]), line)
      end
    end
    done[#done + 1] = tonumber(line)
  end
end
finalize_if_done()
return done
