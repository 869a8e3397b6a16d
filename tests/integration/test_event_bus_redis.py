"""The typed buses on real servers: beside plain clients of redis-py, on a caller's client, durable, and in outages."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, ClassVar, Literal

import pytest
import redis
import redis.asyncio

from livetape.events import (
    AsyncRedisEventBus,
    AsyncRedisExecutionEventBus,
    CommunicationErrorEvent,
    DeliveryPolicy,
    Event,
    EventBus,
    NodeOutputEvent,
    RedisEventBus,
)
from servers import RedisServer


class Note(Event):
    event_type: Literal["note"] = "note"
    text: str
    number: int = 0


class Notes(AsyncRedisEventBus[Note]):
    Model: ClassVar[Any] = Note
    event_bus_name = "notes"


class SyncNotes(RedisEventBus[Note]):
    Model: ClassVar[Any] = Note
    event_bus_name = "notes"


async def soon(listener: Any) -> Any:
    async with asyncio.timeout(10):
        return await anext(listener)


# ---- beside plain clients ----


async def test_a_plain_publisher_is_heard(redis_url: str) -> None:
    async with Notes(redis_url) as bus, bus.listen_events("user/*") as listener:
        async with redis.asyncio.Redis.from_url(redis_url) as plain:
            assert await plain.publish("notes/user/1", '{"payload":{"event_type":"note","text":"plain ä"}}') == 1
            await plain.publish("notes/user/1", "not an event")
            await plain.publish("notes/user/1", '{"payload": {"text": "spaced", "unknown": {}}, "more": 1}')
        assert await soon(listener) == Note(text="plain ä")
        assert await soon(listener) == Note(text="spaced")


async def test_a_plain_subscriber_sees_the_wire_form(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as plain, plain.pubsub() as heard, Notes(redis_url) as bus:
        await heard.subscribe("notes/user/1")
        assert await heard.get_message(timeout=5) is not None
        assert (await bus.publish_event(Note(text="ä"), "user/1")).receivers == 1
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=5)
        assert message is not None
        assert message["data"].startswith('{"payload":{"event_type":"note","text":"ä","number":0}'.encode())
        assert list(json.loads(message["data"])) == ["payload", "traceparent"]
        assert json.loads(message["data"])["payload"] == {"event_type": "note", "text": "ä", "number": 0}


async def test_the_notice_is_exact_on_the_wire(redis_url: str) -> None:
    async with (
        redis.asyncio.Redis.from_url(redis_url) as plain,
        plain.pubsub() as heard,
        Notes(redis_url, max_message_bytes=1000) as bus,
        bus.listen_events("*") as listener,
    ):
        await heard.psubscribe("notes/*")
        assert await heard.get_message(timeout=5) is not None
        size = len(Note(text="x" * 2000).model_dump_json()) + len('{"payload":}')
        await bus.publish_event(Note(text="x" * 2000), "a/b")
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=5)
        assert message is not None
        assert message["data"] == (
            b'{"payload":{"event_type":"error_comms_update","error":"Payload too large for Redis transmission",'
            b'"original_size_bytes":%d,"max_size_bytes":1000}}' % size
        )
        event = await soon(listener)
        assert isinstance(event, CommunicationErrorEvent)
        assert event.key == ("a", "b")


# ---- on a caller's client ----


async def test_an_asynchronous_client_stays_the_callers(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        async with Notes(client) as bus, bus.listen_events("a") as listener:
            assert await bus.publish_event(Note(text="x"), "a")
            assert await soon(listener) == Note(text="x")
        assert await client.ping()


def test_a_synchronous_client_stays_the_callers(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        with SyncNotes(client) as bus, bus.listen_events("a") as listener:
            assert bus.publish_event(Note(text="x"), "a")
            assert next(listener) == Note(text="x")
        assert client.ping()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_connects_for_itself(redis_url: str) -> None:
    with SyncNotes(redis_url) as bus, bus.listen_events("a") as listener:
        assert bus.publish_event(Note(text="parent"), "a")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if bus.publish_event(Note(text="child"), "a").receivers == 1 else 2
                bus.close()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [next(listener), next(listener)] == [Note(text="parent"), Note(text="child")]
        assert bus.publish_event(Note(text="again"), "a")
        assert next(listener) == Note(text="again")


# ---- in an outage ----


@pytest.mark.slow
async def test_a_short_outage_costs_nothing_that_was_published(own_redis: RedisServer) -> None:
    gaps: list[str] = []
    policy = DeliveryPolicy(open_s=0.1, longest_open_s=0.3)
    async with EventBus(Note, name="notes", url=own_redis.url(), policy=policy, on_gap=gaps.append) as bus:
        assert (await bus.publish(Note(text="before"), "a")).receivers == 0
        own_redis.kill()
        outcomes = [await bus.publish(Note(text="in", number=n), "a") for n in range(5)]
        assert not any(outcomes)
        assert all(outcome.buffered for outcome in outcomes)
        own_redis.start()
        async with bus.listen("a") as listener:
            assert await bus.flush(20) == 0
            numbers = []
            while len(numbers) < 5:
                event = await soon(listener)
                if event.number not in numbers:  # one whose connection broke in the middle may come twice
                    numbers.append(event.number)
            assert numbers == [0, 1, 2, 3, 4]
            assert bus.state == "closed"
            assert (await bus.publish(Note(text="after"), "a")).receivers == 1


async def test_without_a_server_publishing_does_not_raise(free_port: int) -> None:
    policy = DeliveryPolicy(attempts=1, close_s=0.1)
    async with AsyncRedisExecutionEventBus(f"redis://127.0.0.1:{free_port}/0", policy=policy) as bus:
        output = NodeOutputEvent(
            user_id="u", graph_id="g", graph_exec_id="x", node_id="n", node_exec_id="ne", index=0, name="o", value=1
        )
        published = await bus.publish(output)
        assert not published
        assert published.error is not None
        assert published.error.code == "bus_unavailable"


# ---- durable ----


async def test_a_durable_bus_numbers_its_events(redis_url: str) -> None:
    async with EventBus(Note, name="notes", url=redis_url, durable=True) as bus:
        async with bus.listen("a/b") as listener:
            for number in range(1, 4):
                published = await bus.publish(Note(text="x", number=number), "a/b")
                assert published.position is not None
                assert published.position.offset == number
                assert published.entry_id == f"{number}-0"
                assert published
            assert [(await soon(listener)).number for _ in range(3)] == [1, 2, 3]
            assert listener.position == published.position
        again = await bus.publish(Note(text="y"), "a/b", idempotency_key="k")
        assert (await bus.publish(Note(text="y"), "a/b", idempotency_key="k")).position == again.position
        async with bus.listen("a/b", after="earliest") as late:
            assert [(await soon(late)).number for _ in range(4)] == [1, 2, 3, 0]
        async with bus.listen("a/b", after=published.position) as later:
            assert (await soon(later)).text == "y"
        async with bus.listen("*") as every:
            await bus.publish(Note(text="z"), "c")
            assert (await soon(every)).text == "z"


async def test_the_tape_has_what_is_too_large_for_the_bus(redis_url: str) -> None:
    async with (
        EventBus(Note, name="notes", url=redis_url, durable=True, max_message_bytes=1000) as bus,
        bus.listen("a") as listener,
        bus.listen("*") as live,
    ):
        published = await bus.publish(Note(text="x" * 5000), "a")
        assert published.replaced
        assert await soon(listener) == Note(text="x" * 5000)
        assert isinstance(await soon(live), CommunicationErrorEvent)


@pytest.mark.slow
async def test_a_durable_listener_misses_nothing_in_an_outage(own_redis: RedisServer) -> None:
    policy = DeliveryPolicy(open_s=0.1, longest_open_s=0.3)
    async with (
        EventBus(Note, name="notes", url=own_redis.url(), durable=True, policy=policy) as bus,
        bus.listen("a") as listener,
    ):
        assert await bus.publish(Note(text="x", number=1), "a")
        assert (await soon(listener)).number == 1
        own_redis.pause()
        publishing = [asyncio.ensure_future(bus.publish(Note(text="x", number=n), "a")) for n in range(2, 6)]
        await asyncio.sleep(0.5)
        own_redis.resume()
        async with asyncio.timeout(30):
            await asyncio.gather(*publishing)
            await bus.flush()
            assert [(await anext(listener)).number for _ in range(4)] == [2, 3, 4, 5]


async def test_events_that_leave_together_arrive_in_order(redis_url: str) -> None:
    async with Notes(redis_url) as bus, bus.listen_events("*") as listener:
        for number in range(2000):
            assert bus.events.publish_soon(Note(text="x", number=number), f"k/{number % 7}")
        assert not bus.events.publish_soon(Note(text="x"), "a*")
        await bus.events.flush(10)
        assert [(await soon(listener)).number for _ in range(2000)] == list(range(2000))
