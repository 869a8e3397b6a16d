"""The watching of tapes in one process, without sockets: one loop from the bus, and the answers over HTTP."""

from __future__ import annotations

import asyncio
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from livetape.clock import Clock, SystemClock
from livetape.events.bus import Bus
from livetape.events.log import EventLog, Tape
from livetape.gateway.broadcaster import Broadcaster
from livetape.gateway.http import TapeResponses
from livetape.gateway.hub import Hub
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.subscriptions import Subscriptions
from livetape.observability import Metrics, NoMetrics


class TapeStreams:
    """One per process. `run` for as long as it serves. It opens and closes nothing of what it is given.

    However many watch a tape, its events come from the bus once and its bytes are made once. A gateway adds sockets
    to it by `hub`, `broadcaster` and `subscriptions`.
    """

    def __init__(
        self,
        options: GatewayOptions,
        bus: Bus,
        log: EventLog,
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        metrics = metrics or NoMetrics()
        clock = clock or SystemClock()
        self.hub = Hub(
            tail_max_events=options.tail_max_events,
            tail_max_bytes=options.tail_max_bytes,
            max_event_bytes=options.max_event_bytes,
        )
        reader = TapeReader(log, options, sleep=sleep)
        self.broadcaster = Broadcaster(bus, self.hub, reader, metrics, sleep=sleep)
        self.subscriptions = Subscriptions(self.hub, self.broadcaster, reader, options, metrics, clock, sleep=sleep)
        self._responses = TapeResponses(log, bus, self.subscriptions, options, clock, sleep=sleep)

    @property
    def ready(self) -> asyncio.Event:
        """Set when the link to the bus stood for the first time."""
        return self.broadcaster.ready

    @property
    def open(self) -> int:
        """How many streams are being sent."""
        return self._responses.streams

    async def run(self) -> None:
        """Move events from the bus to the watchers until cancelled; then `end_all`. Once."""
        try:
            await self.broadcaster.run()
        finally:
            self.end_all()

    def end_all(self) -> None:
        """End every stream after what waits for it, and begin no more. Returns at once.

        A server that waits for its connections before it stops has to call this first.
        """
        self._responses.end_all()

    async def respond(self, request: Request, tape: Tape, *, until: datetime | None = None) -> Response:
        """The events of a tape as the request asks: JSON page, `text/event-stream` or `application/x-ndjson`.

        The caller has checked that the tape may be read. `until`: when the reader's token expires; a stream ends
        `expiry_grace_seconds` later.

        Raises:
            ClosedError: the server stops, no new stream is begun.
        """
        return await self._responses.respond(request, tape, until=until)
