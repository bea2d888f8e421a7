"""What the registry does in one step each: Redis runs a script as a whole, and others see nothing half done."""

from __future__ import annotations

# What is given ('' = not) of a route, the rest as it was.
CHANGE_ROUTE = """
local function change_route(key, share, paused)
  local route = cjson.decode(redis.call('GET', key) or '{"share":0,"paused":false}')
  if share ~= '' then route.share = tonumber(share) end
  if paused ~= '' then route.paused = paused == '1' end
  redis.call('SET', key, cjson.encode(route))
end
"""

# KEYS: route.  ARGV: share, paused (0 or 1), channel, domain.
SET_ROUTE = (
    CHANGE_ROUTE
    + """
change_route(KEYS[1], ARGV[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
"""
)

# KEYS: aliases, versions, move counter, outbox, fence, considered, route.
# ARGV: alias, expected ('' = unset), to ('' = unset), unix seconds, reason, lowest move number, channel, domain,
#       fencing token ('' = not checked), manifest ('' = `to` is registered already), share ('' = as it was),
#       then partition, stream id, ... = what the version has considered.
# A move that has happened already (a retry of the client) succeeds and does nothing. A challenger that becomes champion
# is on trial no longer: with its alias left behind (as releases before this did, hence `current`) it would be again, as
# soon as the champion is another.
MOVE = (
    CHANGE_ROUTE
    + """
local alias, expected, to, manifest = ARGV[1], ARGV[2], ARGV[3], ARGV[10]
local current = redis.call('HGET', KEYS[1], alias) or ''
local known = redis.call('HGET', KEYS[2], to)
if ARGV[9] ~= '' and ARGV[9] ~= (redis.call('GET', KEYS[5]) or '0') then return {'lease', ''} end
if current == to and (manifest == '' or known == manifest) then
  if ARGV[11] ~= '' then change_route(KEYS[7], ARGV[11], '') end
  return {'ok', current}
end
if current ~= expected then return {'moved', current} end
if manifest ~= '' and known and known ~= manifest then return {'exists', ''} end
if manifest == '' and to ~= '' and not known then return {'unknown', ''} end

if manifest ~= '' then redis.call('HSET', KEYS[2], to, manifest) end
for i = 12, #ARGV, 2 do redis.call('HSET', KEYS[6], ARGV[i], ARGV[i + 1]) end
local function name(value) if value == '' then return cjson.null end return value end
local function move(alias, before, to)
  if to == '' then redis.call('HDEL', KEYS[1], alias) else redis.call('HSET', KEYS[1], alias, to) end
  local sequence = tonumber(redis.call('GET', KEYS[3]) or 0)
  sequence = math.max(sequence, tonumber(ARGV[6])) + 1
  redis.call('SET', KEYS[3], sequence)
  redis.call('RPUSH', KEYS[4], cjson.encode({
    sequence = sequence, alias = alias, before = name(before), to = name(to), at = tonumber(ARGV[4]), reason = ARGV[5],
  }))
end
move(alias, current, to)
local share = ARGV[11]
local challenger = redis.call('HGET', KEYS[1], 'challenger')
if alias == 'champion' and challenger and (challenger == to or challenger == current) then
  move('challenger', challenger, '')
  share = '0'
end
if share ~= '' then change_route(KEYS[7], share, '') end
redis.call('PUBLISH', ARGV[7], ARGV[8])
return {'ok', current}
"""
)

# KEYS: version counter, moves counted.  ARGV: highest number in the artifact store, last alias move looked at for it.
RESERVE = """
local number = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], number)
redis.call('SET', KEYS[2], math.max(tonumber(redis.call('GET', KEYS[2]) or 0), tonumber(ARGV[2])))
return number
"""

# KEYS: aliases, versions, pruned.  ARGV: name
REMOVE = """
for _, name in ipairs(redis.call('HVALS', KEYS[1])) do
  if name == ARGV[1] then return end
end
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then redis.call('SADD', KEYS[3], ARGV[1]) end
"""

# KEYS: considered, fence.  ARGV: fencing token ('' = not checked), then partition, stream id, ...
CONSIDER = """
if ARGV[1] ~= '' and ARGV[1] ~= (redis.call('GET', KEYS[2]) or '0') then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""
