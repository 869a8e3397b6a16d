"""The buses with the seed's names: their wire forms, and that publishing never raises."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import ConfigError
from livetape.events.buses import (
    AsyncRedisEventBus,
    AsyncRedisExecutionEventBus,
    AsyncRedisNotificationEventBus,
    BaseRedisEventBus,
    RedisEventBus,
    RedisExecutionEventBus,
    RedisNotificationEventBus,
)
from livetape.events.event import CommunicationErrorEvent, Event
from livetape.events.executions import (
    GraphExecution,
    GraphExecutionEvent,
    GraphExecutionMeta,
    NodeExecutionEvent,
    NodeExecutionResult,
    NodeOutputEvent,
)
from livetape.events.notifications import (
    CopilotCompletionPayload,
    NotificationEvent,
    NotificationPayload,
    OnboardingNotificationPayload,
)
from livetape.events.typed import EventBus

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NODE: dict[str, Any] = {
    "user_id": "u",
    "graph_id": "g",
    "graph_version": 1,
    "graph_exec_id": "x",
    "node_exec_id": "ne",
    "node_id": "n",
    "block_id": "b",
    "status": "COMPLETED",
    "input_data": {"in": [1]},
    "output_data": {"out": ["ä"]},
    "add_time": AT,
}
META: dict[str, Any] = {"id": "x", "user_id": "u", "graph_id": "g", "graph_version": 1, "status": "TERMINATED"}
OUTPUT = NodeOutputEvent(
    user_id="u", graph_id="g", graph_exec_id="x", node_id="n", node_exec_id="ne", index=0, name="o", value=1
)


class Thing(Event):
    event_type: str = "thing"
    number: int


class Declared(AsyncRedisEventBus[Thing]):
    Model: ClassVar[Any] = Thing
    event_bus_name = "things"


class Computed(AsyncRedisEventBus[Thing]):
    Model: ClassVar[Any] = Thing

    @property
    def event_bus_name(self) -> str:
        return "computed"


async def soon(listener: Any) -> Any:
    async with asyncio.timeout(5):
        return await anext(listener)


async def wire_of(adapter: MemoryBus, channel: str, action: Any) -> Any:
    """The payload that an action puts on this channel."""
    async with await adapter.subscribe(channel) as wire:
        await action
        message = await soon(aiter(wire))
        assert message.channel == channel
        assert message.data.startswith(b'{"payload":{')
        return json.loads(message.data)["payload"]


# ---- the base ----


def test_the_names_stand_in_one_family() -> None:
    assert issubclass(AsyncRedisEventBus, BaseRedisEventBus)
    assert issubclass(RedisEventBus, BaseRedisEventBus)
    assert issubclass(RedisExecutionEventBus, RedisEventBus)
    assert issubclass(AsyncRedisExecutionEventBus, AsyncRedisEventBus)
    assert issubclass(RedisNotificationEventBus, RedisEventBus)
    assert issubclass(AsyncRedisNotificationEventBus, AsyncRedisEventBus)


async def test_a_name_is_declared_computed_or_given() -> None:
    adapter = MemoryBus()
    async with (
        Declared(bus=adapter) as declared,
        Computed(bus=adapter) as computed,
        Declared(bus=adapter, event_bus_name="given") as given,
        await adapter.subscribe("things/a", "computed/a", "given/a") as wire,
    ):
        assert given.event_bus_name == "given"
        for bus in (declared, computed, given):
            await bus.publish_event(Thing(number=1), "a")
        assert [(await soon(aiter(wire))).channel for _ in range(3)] == ["things/a", "computed/a", "given/a"]
    assert Declared(bus=adapter).event_bus_name == "things"


async def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigError, match="needs a server"):
        Declared()

    class NoModel(AsyncRedisEventBus[Thing]):
        event_bus_name = "x"

    class NoName(AsyncRedisEventBus[Thing]):
        Model: ClassVar[Any] = Thing

    for kind in (NoModel, NoName):
        with pytest.raises(ConfigError):
            await kind(bus=MemoryBus()).publish_event(Thing(number=1), "a")


async def test_a_url_may_stand_first() -> None:
    async with Declared("memory://") as bus:
        assert (await bus.publish_event(Thing(number=1), "a")).receivers == 0


async def test_a_subclass_may_add_to_listening() -> None:
    class Doubling(AsyncRedisEventBus[Thing]):
        Model: ClassVar[Any] = Thing
        event_bus_name = "things"

        async def listen_events(self, channel_key: Any) -> Any:
            async for event in super().listen_events(channel_key):
                yield event
                yield event

    async with Doubling(bus=MemoryBus()) as bus:
        listener = bus.listen_events("a")
        first = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0.01)
        await bus.publish_event(Thing(number=1), "a")
        assert await first == await anext(listener) == Thing(number=1)
        await listener.aclose()


async def test_it_can_be_used_again_after_close() -> None:
    bus = Declared(bus=MemoryBus())
    for _ in range(2):
        async with bus.listen_events("a") as listener:  # it is more than a generator
            assert await bus.publish_event(Thing(number=1), "a")
            assert await soon(listener) == Thing(number=1)
        await bus.close()
        await bus.close()


async def test_publishing_never_raises() -> None:
    garbage: Any = object()
    async with AsyncRedisExecutionEventBus(bus=MemoryBus()) as bus:
        for wrong in (garbage, None, {"user_id": "u"}, Thing(number=1)):
            published = await bus.publish(wrong)
            assert not published
            assert published.error is not None
        assert not await bus.publish_event(OUTPUT, "a*")
        assert bus.events.stats.failed == 5


# ---- executions ----


async def test_states_are_published_as_events() -> None:
    adapter = MemoryBus()
    channel = "execution_event/u/g/x"
    async with AsyncRedisExecutionEventBus(bus=adapter) as bus, bus.listen("u") as listener:
        sent = await wire_of(adapter, channel, bus.publish(NodeExecutionResult(**NODE)))
        assert next(iter(sent)) == "event_type"
        assert sent["event_type"] == "node_execution_update"
        assert (sent["add_time"], sent["output_data"]) == ("2026-01-02T03:04:05Z", {"out": ["ä"]})
        assert await soon(listener) == NodeExecutionEvent(**NODE)
        sent = await wire_of(adapter, channel, bus.publish(GraphExecution(**META, outputs={"o": [1]})))
        assert (sent["event_type"], sent["id"], sent["outputs"]) == ("graph_execution_update", "x", {"o": [1]})
        assert await soon(listener) == GraphExecutionEvent(**META, outputs={"o": [1]})
        # the row of an execution that never had inputs
        sent = await wire_of(adapter, channel, bus.publish(GraphExecutionMeta(**META, inputs=None)))
        assert (sent["inputs"], sent["outputs"], sent["status"]) == ({}, {}, "TERMINATED")
        assert isinstance(await soon(listener), GraphExecutionEvent)


async def test_single_outputs_only_on_request() -> None:
    async with (
        AsyncRedisExecutionEventBus(bus=MemoryBus()) as bus,
        bus.listen("u", "g") as states,
        bus.listen("u", "g", "x", outputs="each") as every,
    ):
        await bus.publish(OUTPUT)
        await bus.publish(NodeExecutionEvent(**NODE))
        assert await soon(states) == NodeExecutionEvent(**NODE)
        assert await soon(every) == OUTPUT


@pytest.mark.parametrize(
    ("levels", "hears"),
    [(("u",), 3), (("u", "g"), 2), (("u", "g", "x"), 1), (("*",), 4), (("u", "*", "x"), 2), (("u*", "g", "*"), 2)],
)
async def test_missing_levels_match_everything(levels: tuple[str, ...], hears: int) -> None:
    others = [{}, {"graph_exec_id": "y"}, {"graph_id": "h"}, {"user_id": "v", "graph_id": "i"}]
    async with AsyncRedisExecutionEventBus(bus=MemoryBus()) as bus, bus.listen(*levels) as listener:
        for other in others:
            await bus.publish(NodeExecutionEvent(**(NODE | other)))
        heard = 0
        while True:
            try:
                await asyncio.wait_for(anext(listener), 0.05)
            except TimeoutError:
                break
            heard += 1
        assert heard == hears


async def test_large_values_are_shortened_and_what_cannot_be_is_told() -> None:
    async with (
        AsyncRedisExecutionEventBus(bus=MemoryBus(), max_message_bytes=10_000) as bus,
        bus.listen("u") as listener,
    ):
        assert await bus.publish(NodeExecutionEvent(**(NODE | {"output_data": {"big": ["x" * 50_000]}})))
        event = await soon(listener)
        assert "omitted" in event.output_data["big"][0]
        published = await bus.publish(NodeExecutionEvent(**(NODE | {"status_reason": "x" * 50_000})))
        assert published.replaced
        event = await soon(listener)
        assert isinstance(event, CommunicationErrorEvent)
        assert event.key == ("u", "g", "x")


# ---- notifications ----


async def test_notifications_keep_every_field() -> None:
    adapter = MemoryBus()
    async with AsyncRedisNotificationEventBus(bus=adapter) as bus, bus.listen() as every, bus.listen("u1") as own:
        done = NotificationEvent(user_id="u1", payload=CopilotCompletionPayload(session_id="s", status="completed"))
        sent = await wire_of(adapter, "notification_event/u1", bus.publish(done))
        assert sent == {
            "user_id": "u1",
            "payload": {
                "type": "copilot_completion",
                "event": "session_completed",
                "session_id": "s",
                "status": "completed",
            },
        }
        received = await soon(own)
        assert await soon(every) == received
        assert CopilotCompletionPayload.model_validate(received.payload.model_dump()) == done.payload
        extra = NotificationPayload.model_validate({"type": "t", "event": "e", "at": AT, "deep": {"a": [1]}})
        await bus.publish(NotificationEvent(user_id="u2", payload=extra))
        assert (await soon(every)).payload.model_dump() == {
            "type": "t",
            "event": "e",
            "at": "2026-01-02T03:04:05Z",
            "deep": {"a": [1]},
        }
        tour = OnboardingNotificationPayload(event="step_completed", step="WELCOME")
        sent = await wire_of(
            adapter, "notification_event/u1", bus.publish(NotificationEvent(user_id="u1", payload=tour))
        )
        assert sent["payload"] == {"type": "onboarding", "event": "step_completed", "step": "WELCOME"}


async def test_too_large_notifications_are_told() -> None:
    async with (
        AsyncRedisNotificationEventBus(bus=MemoryBus(), max_message_bytes=1000) as bus,
        bus.listen("u") as listener,
    ):
        payload = NotificationPayload.model_validate({"type": "t", "event": "e", "text": "x" * 2000})
        await bus.publish(NotificationEvent(user_id="u", payload=payload))
        event = await soon(listener)
        assert isinstance(event, CommunicationErrorEvent)
        assert event.key == ("u",)


async def test_a_user_id_is_one_level() -> None:
    async with AsyncRedisNotificationEventBus(bus=MemoryBus()) as bus, bus.listen("a/b") as listener:
        event = NotificationEvent(user_id="a/b", payload=NotificationPayload(type="t", event="e"))
        assert await bus.publish(event)
        assert (await soon(listener)).user_id == "a/b"


async def test_names_can_be_given() -> None:
    assert AsyncRedisExecutionEventBus(bus=MemoryBus()).event_bus_name == "execution_event"
    assert RedisNotificationEventBus(bus=MemoryBus()).event_bus_name == "notification_event"
    adapter = MemoryBus()
    async with AsyncRedisExecutionEventBus(bus=adapter, event_bus_name="other") as bus:
        await wire_of(adapter, "other/u/g/x", bus.publish(OUTPUT))


def test_the_synchronous_faces() -> None:
    with RedisExecutionEventBus(bus=MemoryBus()) as bus, bus.listen("u") as listener:
        assert bus.publish(NodeExecutionResult(**NODE))
        assert next(listener) == NodeExecutionEvent(**NODE)
        garbage: Any = None
        assert not bus.publish(garbage)
        with bus.listen("u", outputs="each") as every:
            assert bus.publish(OUTPUT)
            assert next(every) == OUTPUT
    with RedisNotificationEventBus(bus=MemoryBus()) as notifications, notifications.listen() as listener:
        assert notifications.publish(NotificationEvent(user_id="u", payload=NotificationPayload(type="t", event="e")))
        assert next(listener).user_id == "u"


@pytest.mark.parametrize(
    "url", ["http://x", "redis://localhost:abc", "redis://localhost/0?bogus=1", "sqlite://x.db", "redis://localhost/x"]
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError):
        Declared(url)
    with pytest.raises(ConfigError):
        EventBus(Thing, name="things", url=url)


def test_a_thread_cannot_use_an_asynchronous_client() -> None:
    class OfLoop:
        async def execute_command(self) -> None: ...

    with pytest.raises(ConfigError, match="asynchronous client"):
        RedisEventBus[Thing](OfLoop(), event_bus_name="things")


async def test_the_state_can_be_seen() -> None:
    assert Declared(bus=MemoryBus()).state == "closed"
    assert RedisEventBus[Thing](bus=MemoryBus(), event_bus_name="things").state == "closed"
