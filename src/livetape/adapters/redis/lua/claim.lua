-- Takes over what others of a group have not acknowledged, and drops what was trimmed meanwhile.
--
-- KEYS  1 stream
-- ARGV  1 group  2 consumer  3 least milliseconds since the hand-over  4 most entries
-- Returns {entry, deliveries, entry, deliveries …}

local left, cursor, found = tonumber(ARGV[4]), '0-0', {}
repeat
  local page = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', left)
  cursor = page[1]
  for _, entry in ipairs(page[2]) do
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
    found[#found + 1] = entry
    found[#found + 1] = pending[1] and pending[1][4] or 1
    left = left - 1
  end
until cursor == '0-0' or left <= 0
return found
