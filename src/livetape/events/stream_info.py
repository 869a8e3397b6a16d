"""What a stream looks like from outside, in the words of Redis, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from livetape.errors import NotFoundError
from livetape.events.channel import split_tape
from livetape.events.log import MAX_READ, Entry, EventLog, Tape


async def stream_length(log: EventLog, tape: str, *, reader: str | None = None) -> int:
    """How many events of the tape can be read now; 0 when there is none.

    `reader`: a user id; the tape must not belong to somebody else.

    Raises:
        NotFoundError: it does.
    """
    found = await _described(log, tape, reader)
    return 0 if found is None else await length_of(log, found)


async def length_of(log: EventLog, tape: Tape) -> int:
    """How many events can be read. Counted by reading on a mixed tape, computed elsewhere."""
    if not tape.mixed:
        return max(0, tape.offset - tape.first_offset + 1)
    count, after = 0, 0
    while entries := await log.read(tape.name, after):
        count, after = count + len(entries), entries[-1].offset
        if len(entries) < MAX_READ:
            break
    return count


async def stream_info(log: EventLog, tape: str, *, reader: str | None = None) -> dict[str, Any]:
    """A plain dict. `{"length": 0}` when there is no such tape; otherwise

    - as `XINFO STREAM` names it: `length`, `last-generated-id`, `first-entry` and `last-entry` (None, or
      `(id, {"data": …, "timestamp": …, "event_type": …})` with text);
    - what only livetape knows: `owner`, `epoch`, `offset`, `first_offset`, `final`, `mixed`.

    Raises:
        NotFoundError: it belongs to somebody else than `reader`.
    """
    found = await _described(log, tape, reader)
    if found is None:
        return {"length": 0}
    length = await length_of(log, found)
    first = await log.read(tape, found.first_offset - 1, limit=1) if length else []
    last = await log.read(tape, found.offset - 1, limit=1) if length else []
    return {
        "length": length,
        "last-generated-id": entry_id(found.offset),
        "first-entry": _entry(first),
        "last-entry": _entry(last),
        "owner": found.owner,
        "epoch": found.epoch,
        "offset": found.offset,
        "first_offset": found.first_offset,
        "final": found.final,
        "mixed": found.mixed,
    }


def entry_id(offset: int) -> str:
    """The id of the entry with this offset: `<offset>-0`, or the server's own on a mixed tape (see `Tape`)."""
    return f"{offset}-0" if offset < 1 << 60 else f"{offset >> 20}-{offset & 0xFFFFF}"


def offset_of(text: str) -> int | None:
    """The offset of the entry with this id; None when it is no id of an entry."""
    high, dash, low = text.partition("-")
    if not dash or not (high.isascii() and high.isdigit() and low.isascii() and low.isdigit()):
        return None
    if len(high) > 18 or len(low) > 18:
        return None
    first, second = int(high), int(low)
    return first if first < 1 << 40 else first << 20 | second


async def _described(log: EventLog, tape: str, reader: str | None) -> Tape | None:
    found = await log.describe(tape)
    if found is not None and reader is not None and found.owner not in (None, reader):
        raise NotFoundError(f"Job #{split_tape(tape)[1]} not found.")
    return found


def _entry(entries: Sequence[Entry]) -> tuple[str, dict[str, str]] | None:
    if not entries:
        return None
    entry = entries[0]
    try:
        event = from_json(entry.payload)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "data" not in event:
        fields = {"data": entry.payload.decode("utf-8", "replace"), "timestamp": ""}
    else:
        fields = {"data": to_json(event["data"]).decode(), "timestamp": str(event.get("timestamp", ""))}
    return entry_id(entry.offset), {**fields, "event_type": entry.event_type}
