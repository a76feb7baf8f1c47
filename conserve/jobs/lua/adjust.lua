-- Sets what active batches have of their tenants' quotas. ARGV: fourteen for each, as `hold` wants it.
-- One that is not active any more has given all back, and gets nothing again. Result: how many were set.
go_on_without_memory()
local done = 0
for i = 1, #ARGV, 2 + 2 * #NAMES do
  if redis.call('ZSCORE', ACTIVE, ARGV[i]) and not hold(i) then
    done = done + 1
  end
end
return done
