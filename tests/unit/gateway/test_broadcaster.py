"""From the bus to the hub: asked once for all, asked again until it listens, and nothing stops a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.memory.bus import MemoryBus, MemorySubscription
from livetape.errors import BusUnavailableError, ChannelError
from livetape.events.bus import BusMessage, Sink, Subscription
from livetape.events.codec import Envelope
from livetape.gateway.options import GatewayOptions
from livetape.gateway.streams import TapeStreams
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import Counts


class CountingSubscription(Subscription):
    def __init__(self, bus: CountingBus, inner: Subscription) -> None:
        self.bus = bus
        self.inner = inner

    async def add(self, *patterns: str) -> None:
        self.bus.adds.append(patterns)
        await asyncio.sleep(0)
        if self.bus.deaf:
            raise BusUnavailableError
        if "bus/refused" in patterns:
            raise ChannelError
        await self.inner.add(*patterns)

    async def remove(self, *patterns: str) -> None:
        await self.inner.remove(*patterns)

    async def __aiter__(self) -> AsyncIterator[BusMessage]:
        async for message in self.inner:
            yield message

    async def close(self) -> None:
        await self.inner.close()


class CountingBus(MemoryBus):
    def __init__(self) -> None:
        super().__init__()
        self.adds: list[Sequence[str]] = []
        self.deaf = False

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        inner = await super().subscribe(*patterns, sink=sink)
        assert isinstance(inner, MemorySubscription)
        return CountingSubscription(self, inner)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def running(bus: MemoryBus, counts: Counts | None = None) -> AsyncIterator[TapeStreams]:
    streams = TapeStreams(GatewayOptions(), bus, FakeLog(), metrics=counts, sleep=no_sleep)
    task = asyncio.create_task(streams.run())
    try:
        async with asyncio.timeout(5):
            await streams.ready.wait()
            yield streams
    finally:
        task.cancel()
        await asyncio.wait({task})
        await bus.close()


async def test_of_many_who_come_at_once_the_bus_is_asked_once() -> None:
    bus = CountingBus()
    async with running(bus) as streams:
        bus.adds.clear()
        names = [f"bus/{number}" for number in range(1000)]
        await asyncio.gather(*(streams.broadcaster.acquire(name) for name in [*names, *names]))
        assert [len(patterns) for patterns in bus.adds] == [1000]
        assert await bus.publish("bus/999", b"x") == 1
        await streams.broadcaster.acquire("bus/7")
        assert len(bus.adds) == 1, "it listens already"


async def test_of_one_that_is_refused_the_others_know_nothing() -> None:
    bus = CountingBus()
    async with running(bus) as streams:
        outcomes = await asyncio.gather(
            *(streams.broadcaster.acquire(name) for name in ("bus/a", "bus/refused", "bus/b")), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), ChannelError, type(None)]
        assert [await bus.publish(name, b"") for name in ("bus/a", "bus/b", "bus/refused")] == [1, 1, 0]
        with pytest.raises(ChannelError):
            await streams.broadcaster.acquire("bus/refused")


async def test_what_the_bus_did_not_take_is_asked_for_until_it_does() -> None:
    bus = CountingBus()
    async with running(bus) as streams:
        bus.deaf = True
        await asyncio.gather(*(streams.broadcaster.acquire(f"bus/{number}") for number in range(3)))
        streams.broadcaster.release("bus/2")
        assert await bus.publish("bus/1", b"") == 0
        bus.deaf = False
        while not await bus.publish("bus/1", b""):
            await asyncio.sleep(0)
        assert [await bus.publish(f"bus/{number}", b"") for number in range(3)] == [1, 1, 0]


async def test_one_who_gives_up_leaves_the_others_their_answer() -> None:
    bus = CountingBus()
    async with running(bus) as streams:
        first, second = (asyncio.create_task(streams.broadcaster.acquire("bus/a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert await bus.publish("bus/a", b"") == 1
        streams.broadcaster.release("bus/a")
        while await bus.publish("bus/a", b""):
            await asyncio.sleep(0)


async def test_what_is_broken_does_not_stop_the_rest_of_what_came_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    async with running(MemoryBus(), counts) as streams:
        seen: list[str] = []
        flushes: list[int] = []

        def dispatch(channel: str, envelope: Envelope) -> list[object]:
            if envelope.event_type == "worst":
                raise RuntimeError
            seen.append(envelope.event_type)
            return []

        monkeypatch.setattr(streams.hub, "dispatch", dispatch)
        monkeypatch.setattr(streams.hub, "flush", lambda: flushes.append(len(seen)))
        data = [b'{"payload":{"event_type":"a"}}', b"?", b'{"payload":{"event_type":"worst"}}']
        data.append(b'{"payload":{"event_type":"b"}}')
        streams.broadcaster.receive([BusMessage("bus/a", each) for each in data])
        assert seen == ["a", "b"]
        assert flushes == [2], "once, at the end"
        assert counts.values["gateway_broken_messages_total"] == 2
        assert counts.values["gateway_events_total"] == 4
