"""The writer of events that are numbered by the log: encoded once, durable first, then live, in one order for both."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from livetape.events.bus import Bus
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Envelope, encode_payload, too_large_payload
from livetape.events.event import Event
from livetape.events.log import EventLog, NewEvent, Position

KEPT_LOCKS: Final = 4096


class Publisher:
    """Appends to a tape and pushes what it appended. Safe for concurrent use by tasks of one event loop.

    An append and its push are one step per tape: nobody who listens sees number 6 before 5. An event over the size
    limit is kept whole on the tape; on the bus the seed's stand-in carries its number.
    """

    def __init__(self, log: EventLog, bus: Bus, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._log = log
        self._bus = bus
        self._limit = max_message_bytes
        self._locks: OrderedDict[str, asyncio.Lock] = OrderedDict()

    async def publish(
        self,
        tape: str,
        channel: str,
        event: Event,
        event_type: str,
        *,
        final: bool = False,
        idempotency_key: str | None = None,
    ) -> Position:
        """Returns the position once the event is durable and was handed to the bus.

        A repeated idempotency key writes and pushes nothing and returns the first position.

        Raises:
            CodecError: data that JSON cannot carry; nothing was written.
            LogUnavailableError: nothing is known; repeat it with an idempotency key.
            BusUnavailableError: it is on the tape, but was not pushed.
        """
        payload, lossy = encode_payload(event)
        new = NewEvent(event_type, payload, final=final)
        async with self._lock(tape):
            before = await self._log.describe(tape)
            position = await self._log.append(tape, new, idempotency_key=idempotency_key)
            if before is None or position.offset > before.offset:
                await self._bus.publish(channel, self._envelope(new, position, lossy=lossy).encode())
        return position

    def _envelope(self, event: NewEvent, position: Position, *, lossy: bool) -> Envelope:
        payload, event_type = event.payload, event.event_type
        if len(payload) > self._limit:
            payload, event_type = too_large_payload(len(payload), self._limit), "error_comms_update"
        return Envelope(payload, event_type, position.offset, position.epoch, final=event.final, lossy=lossy)

    def _lock(self, tape: str) -> asyncio.Lock:
        lock = self._locks.get(tape)
        if lock is None:
            lock = self._locks[tape] = asyncio.Lock()
            while len(self._locks) > KEPT_LOCKS:
                oldest, held = next(iter(self._locks.items()))
                if held.locked():
                    break
                del self._locks[oldest]
        else:
            self._locks.move_to_end(tape)
        return lock
