-- Stands before the scripts that change what tenants hold of their quotas (see scripts.py). All get these keys first:
-- HELD, a hash: holder (a batch or a file) -> `tenant|requests|tokens|files|bytes|batches|flex`;
-- USED, a hash: `tenant|requests` and so on -> the sum over all its holders;
-- ACTIVE, FLEX and FLEX_OVER, sorted sets: ids of batches that need the keeper, and of those among them that are flex
-- requests: waited for, or not any more and to be deleted.
-- Amounts are set, not added, and what nobody holds cannot be given back, so that every call can be repeated.
local HELD, USED, ACTIVE, FLEX, FLEX_OVER = unpack(KEYS, 1, 5)
local INDEX = KEYS[6]  -- Of the batches of a tenant, or of those that have ended, for those scripts that need it.
local NAMES = { 'requests', 'tokens', 'files', 'bytes', 'batches', 'flex' }

-- As in _batch.lua: what comes after it is not refused for want of memory.
local function go_on_without_memory()
  redis.call('HDEL', HELD, '')
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Tenant and amounts of a holder; nil and zeros where there is none.
local function read_held(holder)
  local text = redis.call('HGET', HELD, holder)
  local tenant, amounts = string.match(text or '', '^([^|]*)|(.*)$')
  local numbers = {}
  for number in string.gmatch(amounts or '', '%d+') do
    numbers[#numbers + 1] = tonumber(number)
  end
  for i = #numbers + 1, #NAMES do
    numbers[i] = 0
  end
  return tenant, numbers
end

local function change_used(tenant, before, after)
  for i, name in ipairs(NAMES) do
    if after[i] ~= before[i] then
      redis.call('HINCRBY', USED, tenant .. '|' .. name, whole(after[i] - before[i]))
    end
  end
end

local function write_held(holder, tenant, amounts)
  local texts = {}
  for i, amount in ipairs(amounts) do
    texts[i] = whole(amount)
  end
  redis.call('HSET', HELD, holder, tenant .. '|' .. table.concat(texts, '|'))
end

-- Sets what a holder has. ARGV from `first` on: holder, tenant, all amounts, all limits (empty: none). A limit counts
-- for what the holder takes beyond what it had. Result: nil, or name, limit and present use of the quota in the way.
local function hold(first)
  local holder, tenant = ARGV[first], ARGV[first + 1]
  local owner, before = read_held(holder)
  tenant = owner or tenant
  local after = {}
  for i, name in ipairs(NAMES) do
    after[i] = tonumber(ARGV[first + 1 + i])
    local limit = tonumber(ARGV[first + 1 + #NAMES + i])
    if limit and after[i] > before[i] then
      local used = tonumber(redis.call('HGET', USED, tenant .. '|' .. name) or 0)
      if used - before[i] + after[i] > limit then
        return { name, whole(limit), whole(used - before[i]) }
      end
    end
  end
  change_used(tenant, before, after)
  write_held(holder, tenant, after)
  return nil
end

-- Gives back all that a holder has. Result: its tenant, nil if there is no such holder (any more).
local function drop(holder)
  local tenant, before = read_held(holder)
  if tenant then
    change_used(tenant, before, { 0, 0, 0, 0, 0, 0 })
    redis.call('HDEL', HELD, holder)
  end
  return tenant
end
