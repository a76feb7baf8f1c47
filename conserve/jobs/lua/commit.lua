-- Records where the results of requests are. ARGV, six for each: line, fence, `output|segment|offset|length` (or
-- `error|...`), counter (`completed` or `failed`), prompt tokens, completion tokens. Result: the lines accepted.
-- A commit counts while its fence is the newest of that line, even when the lease ran out and the request was put back;
-- after the next claim the older commit changes nothing. A repeated commit of the same result is accepted again.
go_on_without_memory()
local frozen = is_frozen()
local accepted = {}
local counts = { completed = 0, failed = 0, prompt_tokens = 0, completion_tokens = 0 }
for i = 1, #ARGV, 6 do
  local line, fence, result = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local committed = redis.call('HGET', RESULTS, line)
  if committed then
    if committed == result then
      accepted[#accepted + 1] = tonumber(line)
    end
  elseif not frozen and redis.call('HGET', FENCES, line) == fence then
    settle(line, result)
    counts[ARGV[i + 3]] = counts[ARGV[i + 3]] + 1
    counts.prompt_tokens = counts.prompt_tokens + tonumber(ARGV[i + 4])
    counts.completion_tokens = counts.completion_tokens + tonumber(ARGV[i + 5])
    accepted[#accepted + 1] = tonumber(line)
  end
end
for name, count in pairs(counts) do
  if count > 0 then
    redis.call('HINCRBY', BATCH, name, count)
  end
end
if not frozen then
  finalize_if_done()
end
return accepted
