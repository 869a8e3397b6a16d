"""The watching of tapes in one process, without sockets: one loop from the bus, and the answers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from livetape.auth import Principal
from livetape.clock import Clock, SystemClock
from livetape.events.bus import Bus
from livetape.events.log import EventLog, Tape
from livetape.gateway.access import AccessCheck
from livetape.gateway.broadcaster import Broadcaster
from livetape.gateway.http import TapeResponses
from livetape.gateway.hub import Hub
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.sender import Sender
from livetape.gateway.subjects import Subject
from livetape.gateway.subscriptions import Subscriptions
from livetape.gateway.sweep import Sweep
from livetape.observability import Metrics, NoMetrics, Tracer


class TapeStreams:
    """One per process. `run` for as long as it serves. It opens and closes nothing of what it is given.

    However many watch a tape, its events come from the bus once and its bytes are made once. A gateway adds sockets
    to it by `hub`, `broadcaster` and `subscriptions`. `one_user`: nobody is asked who he is.
    """

    def __init__(
        self,
        options: GatewayOptions,
        bus: Bus,
        log: EventLog,
        *,
        check: AccessCheck | None = None,
        is_revoked: Callable[[Principal], bool] = lambda reader: False,
        one_user: bool = False,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        sender: Sender | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        metrics = metrics or NoMetrics()
        clock = clock or SystemClock()
        self.hub = Hub(
            tail_max_events=options.tail_max_events,
            tail_max_bytes=options.tail_max_bytes,
            max_event_bytes=options.max_event_bytes,
            later=self._later,
            sender=sender,
        )
        self._bus = bus
        self._metrics = metrics
        reader = TapeReader(log, options, check=check, metrics=metrics, clock=clock, sleep=sleep)
        self.broadcaster = Broadcaster(bus, self.hub, reader, metrics, tracer=tracer, sleep=sleep)
        self._sweep = Sweep(
            self.hub,
            reader,
            self.broadcaster.heal,
            interval_s=options.sweep_seconds,
            sleep=sleep,
            on_turn=self.tell_figures,
        )
        self.subscriptions = Subscriptions(
            self.hub, self.broadcaster, reader, options, metrics, clock, check=check, sleep=sleep
        )
        self._responses = TapeResponses(
            log, bus, self.subscriptions, options, clock, is_revoked=is_revoked, one_user=one_user, sleep=sleep
        )

    def _later(self, work: Callable[[], None]) -> None:
        def run() -> None:
            work()
            self.broadcaster.count()

        asyncio.get_running_loop().call_soon(run)

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
        sweeping = asyncio.create_task(self._sweep.run(), name="sweep of quiet tapes")
        try:
            await self.broadcaster.run()
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})
            self.end_all()

    def tell_figures(self) -> None:
        """How much there is now, for the metrics. Done from time to time; a gateway does so more often."""
        topics, subscriptions = self.hub.sizes
        self._metrics.gauge("gateway_topics", topics)
        self._metrics.gauge("gateway_subscriptions", subscriptions)
        self._metrics.gauge("gateway_event_streams", self.open)
        link_age = getattr(self._bus, "link_age", None)
        if link_age is not None:  # a bus inside the process has no link
            self._metrics.gauge("bus_link_age_seconds", link_age())

    def end_all(self) -> None:
        """End every stream after what waits for it, and begin no more. Returns at once.

        A server that waits for its connections before it stops has to call this first.
        """
        self._responses.end_all()

    def readers(self) -> set[tuple[Principal, Subject]]:
        """Who watches what over HTTP, as far as `respond` was told."""
        return self._responses.readers()

    def end_of(self, concerns: Callable[[Principal, Subject], bool]) -> None:
        """End the streams of those whom something concerns, a revocation for instance. They come back with their
        positions, and are checked at the door."""
        self._responses.end_of(concerns)

    async def respond(
        self, request: Request, tape: Tape, *, until: datetime | None = None, reader: Principal | None = None
    ) -> Response:
        """The events of a tape as the request asks: JSON page, `text/event-stream` or `application/x-ndjson`.

        The caller has checked that the tape may be read. `until`: when the reader's token expires; a stream ends
        `expiry_grace_seconds` later. `reader`: whose stream it is, for `end_of` and `max_streams_per_user`.

        Raises:
            ClosedError: the server stops, no new stream is begun.

        The answer itself may raise HTTPException (429, 503): its user, or this process, has as many streams as it may.
        """
        return await self._responses.respond(request, tape, until=until, reader=reader)
