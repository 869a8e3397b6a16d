"""Every face of the typed event bus behind the one interface of its conformance suite."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Self

from livetape.events.buses import AsyncRedisEventBus, RedisEventBus
from livetape.events.result import Published
from livetape.testing.conformance.event_bus import MAX_MESSAGE_BYTES, SuiteEvent


class AsyncSuiteBus(AsyncRedisEventBus[Any]):
    Model: ClassVar[Any] = SuiteEvent
    event_bus_name = "suite"


class SyncSuiteBus(RedisEventBus[Any]):
    Model: ClassVar[Any] = SuiteEvent
    event_bus_name = "suite"


class AsyncFace:
    """The asynchronous bus with the seed's names."""

    def __init__(self, *source: Any, **options: Any) -> None:
        self.bus = AsyncSuiteBus(*source, max_message_bytes=MAX_MESSAGE_BYTES, **options)

    async def publish(self, event: Any, key: str) -> Published:
        return await self.bus.publish_event(event, key)

    def listen(self, key: str) -> Any:
        return self.bus.listen_events(key)

    async def wait_for(self, key: str, timeout: float | None = None) -> Any:
        return await self.bus.wait_for_event(key, timeout)

    async def close(self) -> None:
        await self.bus.close()


class SyncFace:
    """The synchronous bus, each call in a thread."""

    def __init__(self, *source: Any, **options: Any) -> None:
        self.bus = SyncSuiteBus(*source, max_message_bytes=MAX_MESSAGE_BYTES, **options)

    async def publish(self, event: Any, key: str) -> Published:
        return await asyncio.to_thread(self.bus.publish_event, event, key)

    def listen(self, key: str) -> SyncListening:
        return SyncListening(self.bus, key)

    async def wait_for(self, key: str, timeout: float | None = None) -> Any:
        return await asyncio.to_thread(self.bus.wait_for_event, key, timeout)

    async def close(self) -> None:
        await asyncio.to_thread(self.bus.close)


class SyncListening:
    """An iterator of ordinary code, asked in a thread."""

    def __init__(self, bus: SyncSuiteBus, key: str) -> None:
        self._bus = bus
        self._key = key
        self._events: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        event = await asyncio.to_thread(next, self._events, None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def close(self) -> None:
        await asyncio.to_thread(self._events.close)

    async def __aenter__(self) -> Self:
        self._events = await asyncio.to_thread(self._bus.listen_events, self._key)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
