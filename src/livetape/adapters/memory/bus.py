"""The Bus inside one process: what embedded servers run on. Same rules as any other: bytes, bounded, at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator

from livetape.errors import ChannelError, ClosedError
from livetape.events.bus import Bus, BusMessage, Subscription
from livetape.events.channel import is_pattern
from livetape.events.inbox import DEFAULT_MAX_BYTES, DEFAULT_MAX_MESSAGES, Inbox
from livetape.events.routing import RoutingIndex


class MemoryBus(Bus):
    """Delivers within `publish`, so the order of publication is the order of delivery, across channels too.

    `max_messages` and `max_bytes` bound what waits for one slow subscription.
    """

    def __init__(self, *, max_messages: int = DEFAULT_MAX_MESSAGES, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._subscriptions: set[MemorySubscription] = set()
        self.index: RoutingIndex[Inbox] = RoutingIndex()
        self._closed = False

    async def publish(self, channel: str, data: bytes) -> int:
        if self._closed:
            raise ClosedError("the bus is closed")
        if is_pattern(channel):
            raise ChannelError("a `*` cannot stand in a published channel", channel=channel)
        receivers = self.index.members(channel)
        if receivers:
            message = BusMessage(channel, data)
            for inbox in receivers:
                inbox.offer(message)
        return len(receivers)

    async def subscribe(self, *patterns: str) -> Subscription:
        if self._closed:
            raise ClosedError("the bus is closed")
        subscription = MemorySubscription(self, Inbox(self._max_messages, self._max_bytes))
        self._subscriptions.add(subscription)
        await subscription.add(*patterns)
        return subscription

    async def close(self) -> None:
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()

    def forget(self, subscription: MemorySubscription) -> None:
        """It is closed."""
        self._subscriptions.discard(subscription)


class MemorySubscription(Subscription):
    """Messages wait in a bounded buffer; when it is full the oldest go and a gap marker stands in their place."""

    def __init__(self, bus: MemoryBus, inbox: Inbox) -> None:
        self._bus = bus
        self._inbox = inbox
        self._patterns: set[str] = set()

    async def add(self, *patterns: str) -> None:
        if self._inbox.closed:
            raise ClosedError("the subscription is closed")
        for pattern in patterns:
            self._patterns.add(pattern)
            self._bus.index.attach(pattern, self._inbox)

    async def remove(self, *patterns: str) -> None:
        for pattern in patterns:
            if pattern in self._patterns:
                self._patterns.remove(pattern)
                self._bus.index.detach(pattern, self._inbox)

    def __aiter__(self) -> AsyncIterator[BusMessage]:
        return self._inbox

    async def close(self) -> None:
        if self._inbox.closed:
            return
        self._inbox.close()
        await self.remove(*tuple(self._patterns))
        self._bus.forget(self)
