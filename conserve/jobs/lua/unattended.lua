-- Flex requests whose front has not been heard of for so long, and those that are not among the waited for though nobody
-- has marked them. ARGV: how long, in ms; then the ids of requests without a mark. Result: ids.
local lost = redis.call('ZRANGE', FLEX, '-inf', '(' .. (now_ms() - tonumber(ARGV[1])), 'BYSCORE')
for i = 2, #ARGV do
  if not redis.call('ZSCORE', FLEX, ARGV[i]) then
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
