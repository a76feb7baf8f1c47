-- Reads the capacity reports of all replicas, and forgets replicas whose report has expired. KEYS: the set of replicas.
-- ARGV: what stands before a replica's name in the key of its report, which is in the same slot. Result: the server's time
-- in milliseconds, and the reports one a line (JSON has no line breaks): one answer, since taking a thousand apart is most
-- of the client's work.
local time = redis.call('TIME')
local names = redis.call('SMEMBERS', KEYS[1])
local found, gone = {}, {}
for start = 1, #names, 1000 do
  local keys = {}
  for index = start, math.min(start + 999, #names) do
    keys[#keys + 1] = ARGV[1] .. names[index]
  end
  for index, report in ipairs(redis.call('MGET', unpack(keys))) do
    if report then
      found[#found + 1] = report
    else
      gone[#gone + 1] = names[start + index - 1]
    end
  end
end
for start = 1, #gone, 1000 do
  redis.call('SREM', KEYS[1], unpack(gone, start, math.min(start + 999, #gone)))
end
return { tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), table.concat(found, '\n') }
