"""The Bus inside one process: what embedded servers run on. Same rules as any other: bytes, bounded, at most once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from livetape.errors import ChannelError, ClosedError
from livetape.events.bus import Bus, BusMessage, Subscription
from livetape.events.channel import is_pattern, matches

DEFAULT_MAX_MESSAGES: Final = 10_000
DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024
MAX_REMEMBERED_CHANNELS: Final = 4096


class MemoryBus(Bus):
    """Delivers within `publish`, so the order of publication is the order of delivery, across channels too.

    `max_messages` and `max_bytes` bound what waits for one slow subscription.
    """

    def __init__(self, *, max_messages: int = DEFAULT_MAX_MESSAGES, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._subscriptions: set[MemorySubscription] = set()
        self._exact: dict[str, set[MemorySubscription]] = {}
        self._patterns: dict[str, set[MemorySubscription]] = {}
        # channel -> the patterns that match it; emptied whenever the set of patterns changes
        self._matching: dict[str, tuple[str, ...]] = {}
        self._closed = False

    async def publish(self, channel: str, data: bytes) -> int:
        if self._closed:
            raise ClosedError("the bus is closed")
        if is_pattern(channel):
            raise ChannelError("a `*` cannot stand in a published channel", channel=channel)
        receivers = self._receivers(channel)
        if receivers:
            message = BusMessage(channel, data)
            for subscription in receivers:
                subscription.offer(message)
        return len(receivers)

    async def subscribe(self, *patterns: str) -> Subscription:
        if self._closed:
            raise ClosedError("the bus is closed")
        subscription = MemorySubscription(self, self._max_messages, self._max_bytes)
        self._subscriptions.add(subscription)
        await subscription.add(*patterns)
        return subscription

    async def close(self) -> None:
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()

    def attach(self, subscription: MemorySubscription, pattern: str) -> None:
        """Deliver what matches to this subscription too."""
        index = self._patterns if is_pattern(pattern) else self._exact
        if index is self._patterns and pattern not in index:
            self._matching.clear()
        index.setdefault(pattern, set()).add(subscription)

    def detach(self, subscription: MemorySubscription, pattern: str) -> None:
        """Undo `attach`."""
        index = self._patterns if is_pattern(pattern) else self._exact
        members = index.get(pattern, set())
        members.discard(subscription)
        if not members and index.pop(pattern, None) is not None and index is self._patterns:
            self._matching.clear()

    def forget(self, subscription: MemorySubscription) -> None:
        """It is closed."""
        self._subscriptions.discard(subscription)

    def _receivers(self, channel: str) -> set[MemorySubscription]:
        exact = self._exact.get(channel, set())
        if not self._patterns:
            return set(exact)
        matching = self._matching.get(channel)
        if matching is None:
            if len(self._matching) >= MAX_REMEMBERED_CHANNELS:
                self._matching.clear()
            matching = tuple(pattern for pattern in self._patterns if matches(pattern, channel))
            self._matching[channel] = matching
        return set(exact).union(*(self._patterns[pattern] for pattern in matching))


class MemorySubscription(Subscription, AsyncIterator[BusMessage]):
    """Messages wait in a bounded buffer; when it is full the oldest go and a gap marker stands in their place."""

    def __init__(self, bus: MemoryBus, max_messages: int, max_bytes: int) -> None:
        self._bus = bus
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._patterns: set[str] = set()
        self._waiting: deque[BusMessage] = deque()
        self._waiting_bytes = 0
        self._gap: str | None = None  # the channel that lost messages, "" for several; None when none was lost
        self._arrived = asyncio.Event()
        self._closed = False

    async def add(self, *patterns: str) -> None:
        if self._closed:
            raise ClosedError("the subscription is closed")
        for pattern in patterns:
            self._patterns.add(pattern)
            self._bus.attach(self, pattern)

    async def remove(self, *patterns: str) -> None:
        for pattern in patterns:
            if pattern in self._patterns:
                self._patterns.remove(pattern)
                self._bus.detach(self, pattern)

    def offer(self, message: BusMessage) -> None:
        """Take a message without waiting; called by the bus."""
        self._waiting.append(message)
        self._waiting_bytes += len(message.data)
        while len(self._waiting) > self._max_messages or self._waiting_bytes > self._max_bytes:
            lost = self._waiting.popleft()
            self._waiting_bytes -= len(lost.data)
            self._gap = lost.channel if self._gap in (None, lost.channel) else ""
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[BusMessage]:
        return self

    async def __anext__(self) -> BusMessage:
        while not self._closed:
            if self._gap is not None:
                marker, self._gap = BusMessage(self._gap, b"", gap=True), None
                return marker
            if self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message.data)
                return message
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.remove(*tuple(self._patterns))
        self._bus.forget(self)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._arrived.set()
