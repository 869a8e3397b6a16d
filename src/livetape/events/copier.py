"""The Copier port: an event that others have numbered goes onto its tape and, with it, out to those who listen."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from livetape.events.bus import Bus
from livetape.events.log import EventLog, NewEvent, Position, PutResult


class Copier(ABC):
    """`EventLog.put` with the push that belongs to it. Safe for concurrent use by tasks of one event loop.

    Nobody who listens is told of an event before it is on the tape. Calls for one tape that overlap are carried out
    in the order in which they were made; when one of them fails, those behind it leave no hole: they fail too.
    """

    @abstractmethod
    async def copy(self, tape: str, position: Position, event: NewEvent, *, channel: str, message: bytes) -> PutResult:
        """Put the event, and publish `message` (a whole envelope) on `channel`.

        A "duplicate" may be published once more. A push that fails after the event was put is no error where a
        repetition would not be published: whoever listens again finds it on the tape.

        Raises:
            As `EventLog.put`, and BusUnavailableError: it is on the tape and may not have been published; again.
        """


class LogCopier(Copier):
    """Any log and any bus, one after the other, one copy of a tape at a time."""

    def __init__(self, log: EventLog, bus: Bus) -> None:
        self._log = log
        self._bus = bus
        self._last: dict[str, asyncio.Future[None]] = {}

    async def copy(self, tape: str, position: Position, event: NewEvent, *, channel: str, message: bytes) -> PutResult:
        before = self._last.get(tape)
        mine = self._last[tape] = asyncio.get_running_loop().create_future()
        try:
            if before is not None:
                await asyncio.shield(before)
            result = await self._log.put(tape, position, event)
            await self._bus.publish(channel, message)
            return result
        finally:
            mine.set_result(None)
            if self._last.get(tape) is mine:
                del self._last[tape]
