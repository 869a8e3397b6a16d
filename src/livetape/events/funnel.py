"""From a bus to a sink: what arrives together is handed over in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from livetape.events.bus import BusMessage, ExpressSink, Sink
from livetape.events.outlet import ANY_GAP, Outlet
from livetape.observability import get_logger

logger = get_logger(__name__)

NO_LANES: Final[Mapping[bytes, Callable[[bytes], bool]]] = MappingProxyType({})


class Funnel(Outlet):
    """Collects until `flush`, which whoever fills it calls before anybody else has his turn.

    After `close` the sink is not called any more. Of a sink that raises the batch is lost, and that is logged: what is
    wrong with one listener must not break the link of all.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.lanes = sink.lanes if isinstance(sink, ExpressSink) else NO_LANES
        """The sink's own, for a bus that uses them."""
        self._batch: list[BusMessage] = []
        self._ended = asyncio.Event()

    @property
    def taker(self) -> Callable[[BusMessage], object]:
        return self._batch.append

    def mark_gap(self) -> None:
        if not self._batch or self._batch[-1] is not ANY_GAP:
            self.taker(ANY_GAP)

    def flush(self, taken: int = 0) -> None:
        """Hand over what was collected, if anything was; `taken` is how many messages the lanes took."""
        if not self._batch and not taken:
            return
        batch = self._batch.copy()
        self._batch.clear()
        if self.closed:
            return
        try:
            if taken and isinstance(self._sink, ExpressSink):
                self._sink(batch, taken)
            else:
                self._sink(batch)
        except Exception:
            logger.exception("a sink of the bus raised", extra={"action": "bus_sink_failed"})

    def close(self) -> None:
        self.closed = True
        self._batch.clear()
        self._ended.set()

    async def __anext__(self) -> BusMessage:
        await self._ended.wait()
        raise StopAsyncIteration


class TurnFunnel(Funnel):
    """Flushes by itself: what comes within one turn of the loop is handed over in the next one.

    So the sink never runs inside of the publisher.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._loop = asyncio.get_running_loop()

    @property
    def taker(self) -> Callable[[BusMessage], object]:
        return self._take

    def _take(self, message: BusMessage) -> None:
        if not self._batch:
            self._loop.call_soon(self.flush)
        self._batch.append(message)
