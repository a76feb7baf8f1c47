-- Stands before the scripts that change what tenants hold of their quotas (see scripts.py). All get these keys first:
-- HELD, a hash: holder (a batch or a file) -> `tenant|requests|tokens|files|bytes`;
-- USED, a hash: `tenant|requests` and so on -> the sum over all its holders;
-- ACTIVE and FLEX, sorted sets: ids of batches that need the keeper, and of those among them that are flex requests.
-- Amounts are set, not added, and what nobody holds cannot be given back, so that every call can be repeated.
local HELD, USED, ACTIVE, FLEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- As in _batch.lua: what comes after it is not refused for want of memory.
local function go_on_without_memory()
  redis.call('HDEL', HELD, '')
end

local NAMES = { 'requests', 'tokens', 'files', 'bytes' }

local function whole(number)
  return string.format('%.0f', number)
end

-- Tenant and amounts of a holder; nil and zeros where there is none.
local function read_held(holder)
  local text = redis.call('HGET', HELD, holder)
  if not text then
    return nil, { 0, 0, 0, 0 }
  end
  local tenant, requests, tokens, files, bytes = string.match(text, '^([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)$')
  return tenant, { tonumber(requests), tonumber(tokens), tonumber(files), tonumber(bytes) }
end

local function change_used(tenant, before, after)
  for i, name in ipairs(NAMES) do
    if after[i] ~= before[i] then
      redis.call('HINCRBY', USED, tenant .. '|' .. name, whole(after[i] - before[i]))
    end
  end
end

-- Sets what a holder has. ARGV from `first` on: holder, tenant, four amounts, four limits (empty: none). A limit counts
-- for what the holder takes beyond what it had. Result: nil, or name, limit and present use of the quota in the way.
local function hold(first)
  local holder, tenant = ARGV[first], ARGV[first + 1]
  local owner, before = read_held(holder)
  tenant = owner or tenant
  local after = {}
  for i, name in ipairs(NAMES) do
    after[i] = tonumber(ARGV[first + 1 + i])
    local limit = tonumber(ARGV[first + 5 + i])
    if limit and after[i] > before[i] then
      local used = tonumber(redis.call('HGET', USED, tenant .. '|' .. name) or 0)
      if used - before[i] + after[i] > limit then
        return { name, whole(limit), whole(used - before[i]) }
      end
    end
  end
  change_used(tenant, before, after)
  redis.call('HSET', HELD, holder, tenant .. '|' .. whole(after[1]) .. '|' .. whole(after[2]) .. '|' .. whole(after[3])
    .. '|' .. whole(after[4]))
  return nil
end

-- Gives back all that a holder has. Result: its tenant, nil if there is no such holder (any more).
local function drop(holder)
  local tenant, before = read_held(holder)
  if tenant then
    change_used(tenant, before, { 0, 0, 0, 0 })
    redis.call('HDEL', HELD, holder)
  end
  return tenant
end
