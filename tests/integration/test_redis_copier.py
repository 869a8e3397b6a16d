"""Copies with their push: on Redis in one step, elsewhere one after the other, in order and never with a hole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from conftest import RedisServers
from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.redis.copier import RedisCopier
from livetape.errors import LogError, NotFoundError, PositionLostError, TapeHoleError
from livetape.events.codec import Envelope
from livetape.events.copier import Copier, LogCopier
from livetape.events.log import NewEvent, Position
from livetape.events.open import Backend, open_backend
from livetape.testing.fakes import FakeLog

EPOCH = "epoch1"


def said(number: int) -> NewEvent:
    return NewEvent("said", b'{"event_type":"said","n":%d}' % number, final=number == 100)


def message(number: int) -> bytes:
    event = said(number)
    return Envelope(event.payload, event.event_type, number, EPOCH, final=event.final).encode()


class Desk:
    def __init__(self, backend: Backend, copier: Copier) -> None:
        assert backend.log is not None
        self.bus, self.log, self.copier = backend.bus, backend.log, copier
        self.channel = f"said/{uuid4()}"
        self.tape = f"copies:{uuid4()}"

    async def create(self) -> None:
        await self.log.create(self.tape, owner="u", channel=self.channel, epoch=EPOCH)

    async def copy(self, number: int, text: bytes | None = None, epoch: str = EPOCH) -> str:
        text = message(number) if text is None else text
        return await self.copier.copy(
            self.tape, Position(epoch, number), said(number), channel=self.channel, message=text
        )


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.needs("redis")), "valkey", "log and bus of valkey", "memory"]
)
async def desk(request: pytest.FixtureRequest, redis_servers: RedisServers) -> AsyncIterator[Desk]:
    if request.param == "memory":
        bus, log = MemoryBus(), FakeLog()
        yield Desk(Backend(bus, log), LogCopier(log, bus))
        await bus.close()
        return
    server = redis_servers.get("redis" if request.param == "redis" else "valkey")
    async with open_backend(server.url(redis_servers.new_db())) as backend:
        assert backend.log is not None
        assert isinstance(backend.copier, RedisCopier)
        in_two_steps = request.param.startswith("log")
        yield Desk(backend, LogCopier(backend.log, backend.bus) if in_two_steps else backend.copier)


async def test_many_at_once_are_on_the_tape_and_heard_in_order(desk: Desk) -> None:
    await desk.create()
    async with await desk.bus.subscribe(desk.channel) as heard:
        outcomes = await asyncio.gather(*(desk.copy(number) for number in range(1, 101)))
        assert outcomes == ["stored"] * 100
        got = []
        async with asyncio.timeout(5):
            async for one in heard:
                got.append(one.data)
                if len(got) == 100:
                    break
    assert got == [message(number) for number in range(1, 101)]
    entries = await desk.log.read(desk.tape)
    assert [(entry.offset, entry.payload, entry.final) for entry in entries] == [
        (number, said(number).payload, number == 100) for number in range(1, 101)
    ]
    assert await desk.copy(7) == "duplicate"


async def test_another_text_may_be_published_than_is_kept(desk: Desk) -> None:
    await desk.create()
    async with await desk.bus.subscribe(desk.channel) as heard:
        await desk.copy(1, b'{"payload":{"event_type":"too large"},"offset":1,"epoch":"epoch1"}')
        async with asyncio.timeout(5):
            async for one in heard:
                assert one.data == b'{"payload":{"event_type":"too large"},"offset":1,"epoch":"epoch1"}'
                break
    assert (await desk.log.read(desk.tape))[0].payload == said(1).payload


async def test_refusals_are_those_of_put_and_nothing_is_published(desk: Desk) -> None:
    async with await desk.bus.subscribe(desk.channel) as heard:
        with pytest.raises(NotFoundError):
            await desk.copy(1)
        await desk.create()
        with pytest.raises(PositionLostError):
            await desk.copy(1, epoch="another")
        with pytest.raises(TapeHoleError) as hole:
            await desk.copy(3)
        assert hole.value.context["missing_from"] == 1
        outcomes = await asyncio.gather(desk.copy(1), desk.copy(3), desk.copy(4), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [str, TapeHoleError, TapeHoleError]
        async with asyncio.timeout(5):
            async for one in heard:
                assert one.data == message(1)
                break


async def test_a_tape_that_somebody_else_writes_to_cannot_be_a_copy(redis_url: str) -> None:
    async with open_backend(redis_url) as backend:
        assert backend.copier is not None
        desk = Desk(backend, backend.copier)
        await desk.create()
        assert await desk.copy(1) == "stored"
        client = Redis.from_url(redis_url)
        try:
            await client.xadd(desk.tape, {"data": "{}"})
        finally:
            await client.aclose()
        with pytest.raises(LogError):
            await desk.copy(2)
