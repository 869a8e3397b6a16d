-- Makes a tape's metadata, or returns what is there: the first writer wins.
--
-- KEYS  1 stream  2 meta
-- ARGV  1 epoch  2 now (us)  3 channel  4 "=" and the owner, or ""  5 "=" and the graph, or ""
--       6 milliseconds "keep keep-after-the-end extra-for-meta"
-- Returns 1. RUN and PROMOTED: see append.lua

local meta = KEYS[2]
local known = redis.call('HMGET', meta, 'epoch', 'owner')
local set = { 'HSET', meta }
if not known[1] then
  set = { 'HSET', meta, 'epoch', ARGV[1], 'born', ARGV[2], 'run', RUN, 'offset', '0', 'channel', ARGV[3] }
end
if (not known[1] or ARGV[4] ~= '') and not known[2] then
  set[#set + 1] = 'channel'
  set[#set + 1] = ARGV[3]
  if ARGV[4] ~= '' then
    set[#set + 1] = 'owner'
    set[#set + 1] = string.sub(ARGV[4], 2)
  end
  if ARGV[5] ~= '' then
    set[#set + 1] = 'graph_id'
    set[#set + 1] = string.sub(ARGV[5], 2)
  end
end
if #set > 2 then
  redis.call(unpack(set))
end
if not known[1] then
  local keep, _, extra = string.match(ARGV[6], '(%d+) (%d+) (%d+)')
  redis.call('PEXPIRE', meta, string.format('%.0f', tonumber(keep) + tonumber(extra)))
end
return 1
