-- Puts up allotments, all in the slot of KEYS[1]. ARGV: how long they hold in milliseconds, what stands before a replica's
-- name in the key of its allotment, then names and allotments by turns.
for index = 3, #ARGV, 2 do
  redis.call('SET', ARGV[2] .. ARGV[index], ARGV[index + 1], 'PX', ARGV[1])
end
