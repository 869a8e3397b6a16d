-- Appends a batch of events to a tape and pushes them, in one step.
--
-- KEYS  1 stream  2 meta  3 idempotency keys  4 times  5 outcome of this writer's last batch
-- ARGV  1 sequence of the batch, with a "+" in front when it was perhaps done before  2 candidate for the epoch
--       3 now (us)  4 channel, "" pushes nothing
--       5 "=" and the owner, "*" and the owner of somebody who may write to any tape, "" claims nothing
--       6 milliseconds "keep keep-after-the-end extra-for-meta"  7 most entries, 0: all
--       then for each event a word of letters, its event_type, its data, and in this order for the letters
--         s (seed's fields, else data is the payload): timestamp, and what stands before the data in the payload
--         l: the payload to push instead  t: what stands behind the position in the envelope  k: idempotency key
--         and f: it is final
-- Returns {0} another owner; {1, epoch, mixed, id, receivers, id, receivers …} with numbers for ids of the log and text
--         for ids of the server, receivers -1: a repetition, -2: the push failed; {2, text}: done before, the text is
--         the sequence and the fields of the first answer.
-- In front of this text stand RUN (1 or 0: no acknowledged write of this run of the server can be lost; then its id)
-- and PROMOTED (whether it was a replica once).

local call, find, sub = redis.call, string.find, string.sub
local stream, meta, keys, times = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local sequence, now, channel, owner, max = ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[7]
local FIRST_TIME = 1099511627776

if sub(sequence, 1, 1) == '+' then
  sequence = sub(sequence, 2)
  local before = call('GET', KEYS[5])
  if before and string.match(before, '^%S+') == sequence then
    return { 2, before }
  end
end

local known = call('HMGET', meta, 'epoch', 'offset', 'owner', 'run', 'mixed', 'tick')
local epoch, top, mixed, tick = known[1], known[2], known[5], known[6]

-- More than the offset to write into meta; nil in the common case.
local set = nil
local function note(name, value)
  set = set or { 'HSET', meta }
  set[#set + 1] = name
  set[#set + 1] = value
end

if owner ~= '' then
  local any = sub(owner, 1, 1) == '*'
  owner = sub(owner, 2)
  if not known[3] then
    note('owner', owner)
    note('channel', channel)
  elseif known[3] ~= owner and not any then
    return { 0 }
  end
end
if not epoch then
  epoch, top = ARGV[2], '0'
  set = { 'HSET', meta, 'epoch', epoch, 'born', now, 'channel', channel, 'run', RUN, unpack(set or {}, 3) }
elseif known[4] ~= RUN then
  -- Another run of the server. Events that somebody saw may be missing, and their numbers would be given out again:
  -- then it is another tape from here on. Who copies (`put`) knows what is missing.
  note('run', RUN)
  local kept = not known[4] or (sub(known[4], 1, 1) == '1' and not PROMOTED)
  if not kept and not mixed and not call('HGET', meta, 'copied') then
    epoch = ARGV[2]
    note('epoch', epoch)
  end
end

local function add(id, event_type, data, field, stamp, ...)
  if max ~= '0' then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', max, id, 'data', data, field, stamp, 'event_type', event_type, ...)
  end
  return redis.pcall('XADD', stream, id, 'data', data, field, stamp, 'event_type', event_type, ...)
end

-- Ids as scores, which are exact below 2^53 (see keys.py), and back.
local function score(id)
  if type(id) == 'number' then
    return id
  end
  local high, low = string.match(id, '^(%d+)-(%d+)$')
  return string.format('%.0f', tonumber(high) * 2048 + math.min(tonumber(low), 2047))
end

local function id_of(number)
  if number < FIRST_TIME then
    return number
  end
  return string.format('%.0f-%.0f', math.floor(number / 2048), number % 2048)
end

local offset = tonumber(top)
local reply = { 1, epoch, mixed and 1 or 0 }
local ended, last = false, nil
local keyed = false
local i, words = 8, #ARGV
while i < words do
  local form, event_type, data = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  i = i + 3
  local final = find(form, 'f', 1, true)
  local field, stamp, body, tail, key, ending = 'at', now, data, '}', nil, nil
  if find(form, 's', 1, true) then
    field, stamp, body = 'timestamp', ARGV[i], nil
    if not find(form, 'l', 1, true) and channel ~= '' then
      body = ARGV[i + 1] .. data .. '}'
    end
    i = i + 2
  elseif final then
    ending = 'final'
  end
  if form ~= 'p' then
    if find(form, 'l', 1, true) then
      body = ARGV[i]
      i = i + 1
    end
    if find(form, 't', 1, true) then
      tail = ARGV[i]
      i = i + 1
    end
    if find(form, 'k', 1, true) then
      key = ARGV[i]
      keyed = true
      i = i + 1
    end
  end
  local before = key and call('ZSCORE', keys, key)
  if before then
    reply[#reply + 1] = id_of(tonumber(before))
    reply[#reply + 1] = -1
  else
    local id
    if not mixed then
      id = offset + 1
      local added
      if ending then
        added = add(id .. '-0', event_type, data, field, stamp, ending, '1')
      else
        added = add(id .. '-0', event_type, data, field, stamp)
      end
      if type(added) == 'string' then
        offset = id
      elseif not find(added.err, 'equal or smaller', 1, true) then
        return added
      else
        -- The newest entry is somebody else's: from here on the server gives the ids.
        mixed = '1'
        reply[3] = 1
        note('mixed', '1')
      end
    end
    if mixed then
      if ending then
        id = add('*', event_type, data, field, stamp, ending, '1')
      else
        id = add('*', event_type, data, field, stamp)
      end
      if type(id) == 'table' then
        return id
      end
    end
    last = id
    if key then
      call('ZADD', keys, score(id), key)
    end
    ended = ended or final
    local receivers = -2
    if channel ~= '' then
      local position = ''
      if not mixed then
        position = ',"offset":' .. id .. ',"epoch":"' .. epoch .. '"'
      end
      local pushed = redis.pcall('PUBLISH', channel, '{"payload":' .. body .. position .. tail)
      if type(pushed) == 'number' then
        receivers = pushed
      end
    end
    reply[#reply + 1] = id
    reply[#reply + 1] = receivers
  end
end

-- Once in a while only: what lets Redis forget, and at which time which offset was the newest.
if ended or not tick or math.abs(now - tick) >= 30000000 then
  note('tick', now)
  if ended then
    note('final', '1')
  end
  local past = known[1] and call('HMGET', meta, 'at', 'final', 'channel') or {}
  if past[1] and not mixed and top ~= '0' then
    call('ZADD', times, past[1], top)
  end
  if past[3] == '' and channel ~= '' and owner == '' then
    note('channel', channel)
  end
  local keep, after_end, extra = string.match(ARGV[6], '(%d+) (%d+) (%d+)')
  if ended or past[2] then
    keep = after_end
  end
  if last then
    note('offset', last)
    note('at', now)
  end
  call(unpack(set))
  call('PEXPIRE', stream, keep)
  call('PEXPIRE', meta, string.format('%.0f', keep + extra))
  if known[1] or keyed then
    call('PEXPIRE', keys, keep)
    call('PEXPIRE', times, keep)
  end
  if max ~= '0' and known[1] then
    -- An idempotency key is remembered as long as its entry.
    local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if oldest then
      local high = tonumber(string.match(oldest[1], '^%d+'))
      call('ZREMRANGEBYSCORE', keys, '-inf', '(' .. (high < FIRST_TIME and high or score(oldest[1])))
    end
  end
else
  if set then
    call(unpack(set))
  end
  if last then
    call('HSET', meta, 'offset', last, 'at', now)
  end
end

call('SET', KEYS[5], sequence .. ' ' .. table.concat(reply, ' ', 2), 'EX', 600)
return reply
