"""Hears what all gateway processes must know."""

from __future__ import annotations

from collections.abc import Callable

from livetape.errors import BusUnavailableError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus
from livetape.events.channel import gateway_channel
from livetape.gateway.control import AnyControlEvent, decode_control
from livetape.gateway.reader import Sleep
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)


class ControlListener:
    """Calls `handle` with each control event, and with None when some may have been lost: whenever it begins to
    listen, too, because somebody may have been let in before. What `handle` raises is logged and counted."""

    def __init__(
        self,
        bus: Bus,
        handle: Callable[[AnyControlEvent | None], None],
        *,
        sleep: Sleep,
        metrics: Metrics | None = None,
    ) -> None:
        self._bus = bus
        self._handle = handle
        self._sleep = sleep
        self._metrics = metrics or NoMetrics()

    async def run(self) -> None:
        """Until cancelled, or until the bus is closed. A link that breaks is made again for ever."""
        backoff = Backoff()
        while True:
            try:
                async with await self._bus.subscribe(gateway_channel()) as subscription:
                    backoff.reset()
                    self._tell(None)
                    async for message in subscription:
                        event = None if message.gap else decode_control(message.data)
                        if message.gap or event is not None:
                            self._tell(event)
            except BusUnavailableError as error:
                logger.warning("cannot hear control events: %s", error, extra={"action": "control_unavailable"})
            await self._sleep(backoff.next())

    def _tell(self, event: AnyControlEvent | None) -> None:
        try:
            self._handle(event)
        except Exception:
            # Whatever one event does: the next revocation must be heard.
            logger.exception("a control event could not be followed", extra={"action": "control_failed"})
            self._metrics.count("internal_errors_total", part="control")
