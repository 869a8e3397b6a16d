"""What a typed bus and a job publisher do when Redis is paused, refuses the login, or is given far too much."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from livetape.events import CommunicationErrorEvent, EventBus, JobReader, RedisStreamPublisher
from livetape.events.open import open_backend
from servers import RedisServer

pytestmark = pytest.mark.needs("redis")


class Note(BaseModel):
    text: str


async def test_an_event_of_20_mb_is_replaced_on_the_bus(redis_url: str) -> None:
    async with EventBus(Note, name="large", url=redis_url) as bus, bus.listen("a") as listener:
        result = await bus.publish(Note(text="x" * 20_000_000), "a")
        assert (result.receivers, result.replaced) == (1, True)
        event = await anext(listener)
        assert isinstance(event, CommunicationErrorEvent)
        assert event.original_size_bytes > 20_000_000
        assert (await bus.publish(Note(text="small"), "a")).receivers == 1
        assert await anext(listener) == Note(text="small"), "the link has borne it"


async def test_an_event_of_20_mb_is_whole_on_its_tape(redis_url: str) -> None:
    async with open_backend(redis_url) as backend:
        publisher = RedisStreamPublisher(backend=backend)
        await publisher.publish_task_completed("large", "report", {"text": "x" * 20_000_000})
        (record,) = await JobReader.of(backend).read("large")
        assert len(record.data["result"]["text"]) == 20_000_000


async def test_a_wrong_password_is_said_and_not_waited_for(own_redis: RedisServer) -> None:
    own_redis.cli("CONFIG", "SET", "requirepass", "right")
    async with EventBus(Note, name="n", url=own_redis.url(credentials=":wrong@")) as bus:
        result = await bus.publish(Note(text="x"), "a")
        assert not result
        assert not result.buffered
        assert "login" in str(result.error)
        assert "wrong" not in str(result.error)
    async with EventBus(Note, name="n", url=own_redis.url(credentials=":right@")) as bus:
        assert (await bus.publish(Note(text="x"), "a")).on_bus


@pytest.mark.slow
async def test_a_server_that_is_paused_costs_no_event(own_redis: RedisServer) -> None:
    url = f"{own_redis.url()}?socket_timeout=1"
    async with (
        EventBus(Note, name="n", url=url) as bus,
        EventBus(Note, name="n", url=url) as other,
        other.listen("a") as listener,
    ):
        assert (await bus.publish(Note(text="0"), "a")).receivers == 1
        own_redis.pause()
        async with asyncio.timeout(15):  # nobody is held up for as long as the server is away
            paused = [await bus.publish(Note(text=str(number)), "a") for number in range(1, 6)]
        assert all(not result.on_bus for result in paused)
        assert paused[-1].buffered
        own_redis.resume()
        assert await bus.flush(15) == 0, "what waited has been sent"
        await bus.publish(Note(text="last"), "a")
        seen: list[str] = []
        async with asyncio.timeout(15):
            while "last" not in seen:
                event = await anext(listener)
                assert isinstance(event, Note)
                seen.append(event.text)
        # The listener's own link was made anew, and what came before that is announced as a gap.
        if listener.gaps == 0:
            assert set(seen) >= {"1", "2", "3", "4", "5"}


@pytest.mark.slow
async def test_a_durable_bus_misses_nothing_while_the_server_is_paused(own_redis: RedisServer) -> None:
    url = own_redis.url()
    async with (
        EventBus(Note, name="n", url=url, durable=True) as bus,
        EventBus(Note, name="n", url=url, durable=True) as other,
        other.listen("a", after="earliest") as listener,
    ):
        await bus.publish(Note(text="0"), "a")
        own_redis.pause()
        for number in range(1, 4):
            await bus.publish(Note(text=str(number)), "a")
        own_redis.resume()
        assert await bus.flush(15) == 0
        await bus.publish(Note(text="last"), "a")
        seen: list[str] = []
        async with asyncio.timeout(30):
            while "last" not in seen:
                event = await anext(listener)
                assert isinstance(event, Note)
                seen.append(event.text)
        assert seen == ["0", "1", "2", "3", "last"]
