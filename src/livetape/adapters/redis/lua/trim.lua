-- Forgets the oldest entries, and what stood beside them.
--
-- KEYS  1 stream  2 idempotency keys  3 times
-- ARGV  1 id of the first entry that may stay  2 score of the last one that goes
-- Returns how many went.

local gone = redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
local last = tonumber(ARGV[2])
while true do
  local oldest = redis.call('ZRANGE', KEYS[3], 0, 99)
  local upto = 0
  for i, offset in ipairs(oldest) do
    if tonumber(offset) > last then
      break
    end
    upto = i
  end
  if upto > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[3], 0, upto - 1)
  end
  if upto < 100 then
    return gone
  end
end
