"""A bus at its worst: it drops, doubles and reorders messages, without a word, and cuts and refuses links."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError
from livetape.events.bus import Bus, BusMessage, Sink, Subscription


class LossySubscription(Subscription):
    """Ends or raises when its link is cut, as the bus says."""

    def __init__(self, bus: LossyBus, inner: Subscription) -> None:
        self._bus = bus
        self._inner = inner

    async def add(self, *patterns: str) -> None:
        await self._inner.add(*patterns)

    async def remove(self, *patterns: str) -> None:
        await self._inner.remove(*patterns)

    async def __aiter__(self) -> AsyncIterator[BusMessage]:
        async for message in self._inner:
            yield message
        if self in self._bus.open and self._bus.breaks:
            raise BusUnavailableError

    async def cut(self) -> None:
        await self._inner.close()

    async def close(self) -> None:
        self._bus.open.discard(self)
        await self._inner.close()


class LossyBus(Bus):
    """What goes wrong is drawn from `random`; `faults` is the share of messages it goes wrong with."""

    def __init__(self, seed: int = 0, *, faults: float = 0.3) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.down = False
        self.breaks = False
        """A cut link raises; otherwise the iteration just ends."""
        self.open: set[LossySubscription] = set()
        self.subscribed = 0
        self._inner = MemoryBus()
        self._held: list[tuple[str, bytes]] = []

    async def publish(self, channel: str, data: bytes) -> int:
        if self.down:
            raise BusUnavailableError
        fault = self.random.choice(["drop", "double", "hold"]) if self.random.random() < self.faults else ""
        if fault == "drop":
            return 0
        if fault == "hold":
            self._held.append((channel, data))
            return 0
        count = await self._inner.publish(channel, data)
        if fault == "double":
            await self._inner.publish(channel, data)
        if self._held and self.random.random() < 0.5:
            await self.release()
        return count

    async def release(self) -> None:
        """What was held back arrives now, late."""
        held, self._held = self._held, []
        for late in held:
            await self._inner.publish(*late)

    def forget(self) -> None:
        """What is held back never arrives."""
        self._held.clear()

    async def publish_as_it_is(self, channel: str, data: bytes) -> None:
        """Without faults."""
        await self._inner.publish(channel, data)

    async def cut(self) -> None:
        """All links break."""
        for subscription in tuple(self.open):
            await subscription.cut()

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if self.down:
            raise BusUnavailableError
        subscription = LossySubscription(self, await self._inner.subscribe(*patterns, sink=sink))
        self.open.add(subscription)
        self.subscribed += 1
        return subscription

    async def close(self) -> None:
        await self._inner.close()
