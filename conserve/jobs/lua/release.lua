-- Gives leased requests back, not counted as attempts. ARGV: line, fence, line, fence ...
-- Result: how many were the caller's to give back.
if is_frozen() then
  return 0
end
go_on_without_memory()
local released = 0
for i = 1, #ARGV, 2 do
  local line = ARGV[i]
  if holds_lease(line, ARGV[i + 1]) then
    put_back(line, string.match(redis.call('HGET', ENTRIES, line), '^[^@]*'))
    released = released + 1
  end
end
return released
