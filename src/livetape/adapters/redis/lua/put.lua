-- Copies an event under the number that another authority gave it.
--
-- KEYS  1 stream  2 meta  3 times
-- ARGV  1 epoch  2 offset  3 now (us)  4 time of the event (us)
--       5 milliseconds "keep keep-after-the-end extra-for-meta"
--       6 letters  7 event_type  8 data  9 timestamp of the seed's form (as in append.lua), else ""
--       10 channel, "" or none: nothing is pushed  11 what is pushed; or, where 12 is "t", what stands behind the data
-- Returns {"stored"}, {"duplicate"}, {"absent"}, {"epoch", the tape's}, {"hole", first missing offset}, {"mixed"}

local stream, meta, times = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', meta, 'epoch', 'offset', 'mixed', 'tick', 'at', 'final', 'copied')
if not known[1] then
  return { 'absent' }
end
if known[1] ~= ARGV[1] then
  return { 'epoch', known[1] }
end
if known[3] then
  return { 'mixed' }
end
local top, offset = tonumber(known[2]), tonumber(ARGV[2])
if offset <= top then
  return { 'duplicate' }
end
if offset > top + 1 then
  return { 'hole', top + 1 }
end
local ended = string.find(ARGV[6], 'f', 2, true)
local words = { 'XADD', stream, ARGV[2] .. '-0', 'data', ARGV[8] }
if string.byte(ARGV[6]) == 115 then
  words[6], words[7], words[8], words[9] = 'timestamp', ARGV[9], 'event_type', ARGV[7]
else
  words[6], words[7], words[8], words[9] = 'at', ARGV[4], 'event_type', ARGV[7]
  if ended then
    words[10], words[11] = 'final', '1'
  end
end
local added = redis.pcall(unpack(words))
if type(added) == 'table' then
  if string.find(added.err, 'equal or smaller', 1, true) then
    return { 'mixed' }
  end
  return added
end
local set = { 'HSET', meta, 'offset', ARGV[2], 'at', ARGV[4] }
if not known[7] then
  set[#set + 1] = 'copied'
  set[#set + 1] = '1'
end
if ended then
  set[#set + 1] = 'final'
  set[#set + 1] = '1'
end
-- Also when old events are copied in one go: the times of the events count.
local far = known[5] and math.abs(ARGV[4] - known[5]) >= 30000000
if ended or far or not known[4] or math.abs(ARGV[3] - known[4]) >= 30000000 then
  set[#set + 1] = 'tick'
  set[#set + 1] = ARGV[3]
  if known[5] and top > 0 then
    redis.call('ZADD', times, known[5], known[2])
  end
  local keep, after_end, extra = string.match(ARGV[5], '(%d+) (%d+) (%d+)')
  if ended or known[6] then
    keep = after_end
  end
  redis.call('PEXPIRE', stream, keep)
  redis.call('PEXPIRE', times, keep)
  redis.call('PEXPIRE', meta, string.format('%.0f', tonumber(keep) + tonumber(extra)))
end
redis.call(unpack(set))
if ARGV[10] and ARGV[10] ~= '' then
  local message = ARGV[11]
  if ARGV[12] == 't' then
    message = '{"payload":' .. ARGV[8] .. message
  end
  redis.pcall('PUBLISH', ARGV[10], message)
end
return { 'stored' }
