"""The Bus inside one process: what embedded servers run on. Same rules as any other: bytes, bounded, at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from livetape.errors import ChannelError, ClosedError, LivetapeError
from livetape.events.bus import Bus, BusMessage, Sink, Subscription
from livetape.events.channel import is_pattern
from livetape.events.funnel import TurnFunnel
from livetape.events.inbox import DEFAULT_MAX_BYTES, DEFAULT_MAX_MESSAGES, Inbox
from livetape.events.outlet import Outlet
from livetape.events.routing import RoutingIndex
from livetape.events.tally import Tally
from livetape.observability import Metrics, NoMetrics


class MemoryBus(Bus):
    """Delivers within `publish`, so the order of publication is the order of delivery, across channels too.

    `max_messages` and `max_bytes` bound what waits for one slow subscription. A sink is handed what was published
    within one turn of the loop, in the next one.
    """

    def __init__(
        self,
        *,
        max_messages: int = DEFAULT_MAX_MESSAGES,
        max_bytes: int = DEFAULT_MAX_BYTES,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or NoMetrics()
        self._tally = Tally.of_bus(metrics)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._subscriptions: set[MemorySubscription] = set()
        self.index: RoutingIndex[Outlet] = RoutingIndex()
        self._closed = False

    async def publish(self, channel: str, data: bytes) -> int:
        if self._closed:
            raise ClosedError("the bus is closed")
        if is_pattern(channel):
            raise ChannelError("a `*` cannot stand in a published channel", channel=channel)
        begun = 0.0 if self._tally is None else self._tally.begin()
        receivers = self.index.members(channel)
        if receivers:
            message = BusMessage(channel, data)
            for outlet in receivers:
                outlet.taker(message)
        if self._tally is not None:
            self._tally.add(len(data), len(receivers), begun)
        return len(receivers)

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> Sequence[int | BaseException]:
        outcomes: list[int | BaseException] = []
        for channel, data in messages:
            try:
                outcomes.append(await self.publish(channel, data))  # never suspends: no task is needed
            except LivetapeError as error:
                outcomes.append(error)
        return outcomes

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if self._closed:
            raise ClosedError("the bus is closed")
        subscription = MemorySubscription(self, self._inbox() if sink is None else TurnFunnel(sink))
        self._subscriptions.add(subscription)
        await subscription.add(*patterns)
        return subscription

    async def close(self) -> None:
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        if self._tally is not None:
            self._tally.hand_on()

    def _inbox(self) -> Inbox:
        return Inbox(self._max_messages, self._max_bytes, on_drop=self._dropped)

    def _dropped(self, count: int) -> None:
        self._metrics.count("bus_dropped_total", count, reason="slow_reader")

    def forget(self, subscription: MemorySubscription) -> None:
        """It is closed."""
        self._subscriptions.discard(subscription)


class MemorySubscription(Subscription):
    """Messages wait in a bounded buffer; when it is full the oldest go and a gap marker stands in their place."""

    def __init__(self, bus: MemoryBus, outlet: Outlet) -> None:
        self._bus = bus
        self._outlet = outlet
        self._patterns: set[str] = set()

    async def add(self, *patterns: str) -> None:
        if self._outlet.closed:
            raise ClosedError("the subscription is closed")
        for pattern in patterns:
            self._patterns.add(pattern)
            self._bus.index.attach(pattern, self._outlet)

    async def remove(self, *patterns: str) -> None:
        for pattern in patterns:
            if pattern in self._patterns:
                self._patterns.remove(pattern)
                self._bus.index.detach(pattern, self._outlet)

    def __aiter__(self) -> AsyncIterator[BusMessage]:
        return self._outlet

    async def close(self) -> None:
        if self._outlet.closed:
            return
        self._outlet.close()
        await self.remove(*tuple(self._patterns))
        self._bus.forget(self)
