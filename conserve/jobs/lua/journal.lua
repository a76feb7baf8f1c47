-- Adds tokens that requests have produced to their journals. ARGV: revision of the model, then four for each: line, fence,
-- how many tokens the caller takes to be there, the new ones packed (journal.py).
-- Result: for each how many are there now; -1 when the caller's claim is not the newest, or results are frozen.
-- With 0 the new ones replace what is there. Where another number is there nothing is written: it is a repeated call, or
-- Redis was taken back to an older state; the caller goes on from the number that it is told. Older tokens of the same claim,
-- or of the one that it continues, are a beginning of the same answer.
-- As with commits, the newest claim counts, even when its lease has run out.
local frozen, revision = is_frozen(), ARGV[1]
local counts = {}
for i = 2, #ARGV, 4 do
  local line, start, added = ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if frozen or redis.call('HGET', FENCES, line) ~= ARGV[i + 1] then
    counts[#counts + 1] = -1
  else
    local count, kept = read_journal_head(line)
    if start == 0 then
      forget_journal(line)
      count = 0
    elseif kept ~= revision then
      count = 0
    end
    if count == start and added ~= '' then
      local first = 1
      while first <= #added do
        local part, used = math.floor(count / PART_TOKENS), count % PART_TOKENS
        local room = (PART_TOKENS - used) * TOKEN_CHARACTERS
        local piece = string.sub(added, first, first + room - 1)
        local field = line .. ':' .. part
        redis.call('HSET', JOURNAL, field, (used > 0 and redis.call('HGET', JOURNAL, field) or '') .. piece)
        count = count + #piece / TOKEN_CHARACTERS
        first = first + room
      end
      redis.call('HSET', JOURNAL, line, count .. '|' .. revision)
    end
    counts[#counts + 1] = count
  end
end
return counts
