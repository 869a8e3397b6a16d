-- What is known of a tape. A stream that somebody else made gets an epoch, which stays.
--
-- KEYS  1 stream  2 meta
-- ARGV  1 candidate for the epoch  2 now (us)  3 channel of a tape that has none  4 milliseconds extra for meta
--       from 5 on: names of events after which a stream of somebody else's is final
-- Returns {owner, graph_id, channel, epoch, newest id, oldest id or false, final, mixed}, or false: no such tape.

local stream, meta = KEYS[1], KEYS[2]
-- With more bytes in the first and the last entry, what was found is kept: XINFO copies both.
local LARGE = 65536

local function size_of(entry)
  local size = 0
  for _, word in ipairs(entry and entry[2] or {}) do
    size = size + #word
  end
  return size
end

local known = redis.call('HMGET', meta, 'epoch', 'offset', 'owner', 'graph_id', 'channel', 'final', 'mixed', 'seen')
local length = redis.call('XLEN', stream)
local there = length > 0 or redis.call('EXISTS', stream) == 1
local top, oldest, newest, seen = '0-0', false, false, nil
local before = known[8] and { string.match(known[8], '^(%S+) (%S+) (%S+)$') } or {}
-- As many entries as then and none after the newest of then: they are the same, since ids only grow, and the newest was
-- looked at then. (Nothing is after the greatest of all ids: that is an error, without rows.)
if before[3] == tostring(length) and #redis.pcall('XRANGE', stream, '(' .. before[1], '+', 'COUNT', 1) == 0 then
  top, oldest = before[1], before[2]
elseif there then
  local size = 0
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      top = info[i + 1]
    elseif info[i] == 'first-entry' and info[i + 1] then
      oldest = info[i + 1][1]
      size = size + size_of(info[i + 1])
    elseif info[i] == 'last-entry' and info[i + 1] then
      newest = info[i + 1]
      size = size + size_of(newest)
    end
  end
  if oldest and (size > LARGE or known[8]) then
    seen = top .. ' ' .. oldest .. ' ' .. length
  end
end
local epoch, offset, final, mixed = known[1], known[2] or '0', known[6], known[7]
local set = { 'HSET', meta }
if not epoch then
  if top == '0-0' then
    return false
  end
  epoch = ARGV[1]
  set = { 'HSET', meta, 'epoch', epoch, 'born', ARGV[2], 'offset', '0', 'channel', ARGV[3] }
  known[5] = ARGV[3]
end
local high, low = string.match(top, '^(%d+)-(%d+)$')
if not mixed and (low ~= '0' or tonumber(high) > tonumber(offset)) then
  mixed = '1'
  set[#set + 1] = 'mixed'
  set[#set + 1] = '1'
end
if mixed and newest and not final then
  for i = 1, #newest[2], 2 do
    if newest[2][i] == 'event_type' then
      for k = 5, #ARGV do
        if newest[2][i + 1] == ARGV[k] then
          final = '1'
          set[#set + 1] = 'final'
          set[#set + 1] = '1'
        end
      end
    end
  end
end
if #set > 2 then
  redis.call(unpack(set))
  if not known[1] then
    local left = redis.call('PTTL', stream)
    if left > 0 then
      redis.call('PEXPIRE', meta, string.format('%.0f', left + tonumber(ARGV[4])))
    end
  end
end
if seen then
  redis.pcall('HSET', meta, 'seen', seen) -- a server that takes no writes now is asked all the same
end
if mixed and top ~= '0-0' then
  offset = top
elseif not string.find(offset, '-', 1, true) then
  offset = offset .. '-0'
end
return { known[3], known[4], known[5] or '', epoch, offset, oldest, final and 1 or 0, mixed and 1 or 0 }
