"""A page of a tape as one JSON object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pydantic_core import to_json

from livetape.errors import NotFoundError, PositionLostError
from livetape.events.log import MAX_READ, Entry, EventLog, Tape
from livetape.gateway.forms import one_line

DEFAULT_LIMIT: Final = 100
MAX_BYTES: Final = 8 * 1024 * 1024
"""A page ends early rather than be larger than about this."""

MAX_SCANNED: Final = 10_000
"""A page of rare types ends early rather than look at more entries than this."""


async def read_page(log: EventLog, tape: Tape, *, after: int, limit: int, types: Collection[str] = ()) -> bytes:
    """`{"events":[…],"next":…,"epoch":…,"offset":…,"final":…}`.

    `next` is what to give as `after` for the following page: the last offset that was looked at. `offset` is that of
    the newest event of the tape when the page was begun; nothing is left once `next` has reached it.

    The page of a mixed tape says `"mixed":true`, and its offsets are strings: JSON numbers do not carry them exactly.

    A tape that is born again meanwhile answers with its new epoch.

    Raises:
        NotFoundError: the tape is gone, or somebody else's now.
    """
    while True:
        try:
            return await _read_page(log, tape, after=after, limit=limit, types=types)
        except PositionLostError:
            again = await log.describe(tape.name)
            if again is None or again.owner != tape.owner or again.epoch == tape.epoch:
                raise NotFoundError from None
            tape = again


async def _read_page(log: EventLog, tape: Tape, *, after: int, limit: int, types: Collection[str]) -> bytes:
    events: list[bytes] = []
    number = b'"%d"' if tape.mixed else b"%d"
    size = scanned = 0
    reached = after
    while len(events) < limit and size < MAX_BYTES and scanned < MAX_SCANNED:
        wanted = MAX_READ if types else limit - len(events)
        entries = await log.read(tape.name, reached, limit=min(wanted, MAX_READ, 256), epoch=tape.epoch)
        for entry in entries:
            reached = entry.offset
            scanned += 1
            if not types or entry.event_type in types:
                events.append(_event(entry, number))
                size += len(events[-1])
                if len(events) >= limit or size >= MAX_BYTES:
                    break
        if not entries:
            break
    return b'{"events":[%b],"next":%b,"epoch":%b,"offset":%b,"final":%b%b}' % (
        b",".join(events),
        number % reached,
        to_json(tape.epoch),
        number % tape.offset,
        b"true" if tape.final else b"false",
        b',"mixed":true' if tape.mixed else b"",
    )


def _event(entry: Entry, number: bytes) -> bytes:
    return b'{"offset":%b,"event_type":%b,"time":%b,"data":%b%b}' % (
        number % entry.offset,
        to_json(entry.event_type),
        to_json(entry.time),
        one_line(entry.payload),
        b',"final":true' if entry.final else b"",
    )
