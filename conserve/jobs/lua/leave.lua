-- Gives the room free that flex requests took up while they were waited for. ARGV: their ids.
go_on_without_memory()
local now = now_ms()
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', FLEX, id) == 1 then
    redis.call('ZADD', FLEX_OVER, now, id)
    local tenant, before = read_held(id)
    if tenant then
      local after = { unpack(before) }
      after[6] = 0
      change_used(tenant, before, after)
      write_held(id, tenant, after)
    end
  end
end
return 1
