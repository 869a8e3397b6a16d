"""The Recorder on SQLite and a bus of this process."""

from __future__ import annotations

import asyncio

from livetape.adapters.sqlite.appender import Appender, Call
from livetape.errors import ClosedError
from livetape.events.bus import Bus
from livetape.events.log import NewEvent
from livetape.events.recorder import AS_RECORDED, Live, Recorded, Recorder, counted
from livetape.events.tally import Tally
from livetape.observability import Metrics


class SqliteRecorder(Recorder):
    """Writes through the log's own appender, so that what the log appends keeps its place among what is recorded."""

    def __init__(self, appender: Appender, bus: Bus, *, metrics: Metrics | None = None) -> None:
        self._appender = appender
        self._bus = bus
        self._tally = Tally.of_recorder(metrics)
        self._closed = False

    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        if self._closed:
            raise ClosedError("the recorder is closed")
        done = asyncio.get_running_loop().create_future()
        answer = self._appender.add(
            Call(tape, channel, event, done, idempotency_key, owner, any_owner, live, self._bus)
        )
        return await answer if self._tally is None else await counted(self._tally, answer, event)

    async def close(self) -> None:
        """Waits for what is being written."""
        self._closed = True
        await self._appender.finish()
        if self._tally is not None:
            self._tally.hand_on()
