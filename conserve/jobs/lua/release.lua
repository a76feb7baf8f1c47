-- Gives leased requests back. ARGV: 1 to count the attempt or 0, most attempts, reason, then line, fence ...
-- Result: how many were the caller's to give back.
local count_attempt, max_attempts, reason = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3]
if is_frozen() then
  return 0
end
local released = 0
for i = 4, #ARGV, 2 do
  local line = ARGV[i]
  local entry = redis.call('HGET', LEASED, line)
  if entry and redis.call('HGET', FENCES, line) == ARGV[i + 1] then
    put_back(line, entry, count_attempt, max_attempts, reason)
    released = released + 1
  end
end
finalize_if_done()
return released
