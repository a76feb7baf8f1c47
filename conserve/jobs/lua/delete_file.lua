-- Forgets a file that no batch reads. KEYS: file, its users. Result: 1 forgotten, 0 unknown, -1 in use.
if redis.call('ZCARD', KEYS[2]) > 0 then
  return -1
end
return redis.call('DEL', KEYS[1])
