"""The Redis backend's scripts. Each runs alone, so what it compares does not change before it writes.

The first argument is a JSON object; `offsets` in it is a list of [field, next offset], written last, so that a script
that stops half-way (memory) is run again from the old offsets. Names of keys and fields: `features.backends.redis`.
"""

from features.tile_rows import N_BYTE_OFFSET

_OFFSETS = """
for _, pair in ipairs(header.offsets) do
  local held = redis.call('HGET', KEYS[1], pair[1])
  if not held or tonumber(held) < pair[2] then
    redis.call('HSET', KEYS[1], pair[1], string.format('%.0f', pair[2]))
  end
end
"""

_UNLESS_ERASED = """
if redis.call('HLEN', KEYS[2]) ~= header.erasures then return 0 end
"""
"""Nothing is written by who does not know all erasures, which KEYS[2] holds."""

WRITE_TILES = f"""
-- ARGV: header with index = [set, member]*, then (hash, field, packed)*.
local header = cjson.decode(ARGV[1])
{_UNLESS_ERASED}
local function count(packed) return (struct.unpack('<i8', packed, {N_BYTE_OFFSET + 1})) end
for i = 2, #ARGV, 3 do
  local held = redis.call('HGET', ARGV[i], ARGV[i + 1])
  if not held or count(ARGV[i + 2]) > count(held) then
    redis.call('HSET', ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
for _, pair in ipairs(header.index) do redis.call('SADD', pair[1], pair[2]) end
{_OFFSETS}
return 1
"""

WRITE_INTERACTIONS = f"""
-- ARGV: header with seen, history = [sorted set, time, member]*, decisions = [hash, target, time, event id, stands]*,
-- and the bounds of the three.
local header = cjson.decode(ARGV[1])
{_UNLESS_ERASED}
local function merge_sorted(entries, bound)
  local touched = {{}}
  for _, entry in ipairs(entries) do
    redis.call('ZADD', entry[1], 'GT', entry[2], entry[3])
    touched[entry[1]] = true
  end
  for key, _ in pairs(touched) do redis.call('ZREMRANGEBYRANK', key, 0, -(bound + 1)) end
end
local function less(a, b) -- by bytes: the operator follows the server's locale
  for i = 1, math.min(#a, #b) do
    if a:byte(i) ~= b:byte(i) then return a:byte(i) < b:byte(i) end
  end
  return #a < #b
end
local function older(a, b)
  if a.time ~= b.time then return a.time < b.time end
  return less(a.id, b.id)
end
local function decision(target, text)
  local time, id = text:match('^(%d+) (%S+) ')
  return {{target = target, time = tonumber(time), id = id}}
end
local function cut(key, bound, slack)
  if redis.call('HLEN', key) <= bound + slack then return end
  local stored, all = redis.call('HGETALL', key), {{}}
  for i = 1, #stored, 2 do all[#all + 1] = decision(stored[i], stored[i + 1]) end
  table.sort(all, older)
  for i = 1, #all - bound do redis.call('HDEL', key, all[i].target) end
end
merge_sorted(header.seen, header.seen_max)
merge_sorted(header.history, header.history_max)
for _, made in ipairs(header.decisions) do
  local text = string.format('%.0f %s %d', made[3], made[4], made[5])
  local held = redis.call('HGET', made[1], made[2])
  if not held or older(decision(made[2], held), decision(made[2], text)) then
    redis.call('HSET', made[1], made[2], text)
    cut(made[1], header.decisions_max, header.slack)
  end
end
{_OFFSETS}
return 1
"""

WRITE_LEDGER = f"""
-- KEYS[2] is of use within the script alone. ARGV: header, then (key, mask)*.
local header = cjson.decode(ARGV[1])
for i = 2, #ARGV, 2 do
  redis.call('SET', KEYS[2], ARGV[i + 1])
  redis.call('BITOP', 'OR', ARGV[i], ARGV[i], KEYS[2])
end
redis.call('DEL', KEYS[2])
{_OFFSETS}
"""

EXPIRE_HASH = """
-- KEYS[1] a hash of tiles; ARGV: the day tile's size, the first start kept of day tiles, and of the others.
local removed = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local tile_ms, start_ms = field:match(' (%d+) (%d+)$')
  local kept_from = (tile_ms == ARGV[1]) and ARGV[2] or ARGV[3]
  if tonumber(start_ms) < tonumber(kept_from) then removed = removed + redis.call('HDEL', KEYS[1], field) end
end
return removed
"""

WRITE_DOCUMENTS = f"""
-- KEYS[1] the view's hash; ARGV: header, then (key, event time, created, payload)*. An equal time replaces.
local header = cjson.decode(ARGV[1])
{_UNLESS_ERASED}
for i = 2, #ARGV, 4 do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  local newer = true
  if held then
    local event, created = held:match('^(%d+) (%d+) ')
    event, created = tonumber(event), tonumber(created)
    local own_event, own_created = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    newer = own_event > event or (own_event == event and own_created >= created)
  end
  if newer then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3])
  end
end
return 1
"""
