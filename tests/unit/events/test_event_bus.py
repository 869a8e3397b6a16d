"""The typed bus: where it gets its adapter, what its listeners do with bad messages and gaps, how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError, ChannelError, ClosedError, CodecError, ConfigError, DecryptionError
from livetape.events.bus import Sink, Subscription
from livetape.events.codec import Encoded, JsonCodec
from livetape.events.event import Event
from livetape.events.executions import EXECUTION_EVENTS, NodeOutputEvent
from livetape.events.open import Backend
from livetape.events.recorder import LogRecorder
from livetape.events.typed import EventBus
from livetape.observability import TRACEPARENT
from livetape.testing.fakes import FakeLog


class Note(Event):
    event_type: Literal["note"] = "note"
    text: str


def note_bus(bus: MemoryBus | None = None, **options: Any) -> EventBus[Note]:
    return EventBus(Note, name="notes", bus=bus or MemoryBus(), **options)


async def soon(listener: Any) -> Any:
    async with asyncio.timeout(5):
        return await anext(listener)


# ---- opening and closing ----


@pytest.mark.parametrize(
    "source", [{}, {"url": "memory://", "bus": MemoryBus()}, {"bus": MemoryBus(), "durable": True}]
)
def test_one_adapter_is_needed(source: Any) -> None:
    with pytest.raises(ConfigError):
        EventBus(Note, name="n", **source)


@pytest.mark.parametrize("name", ["", "a/b", "a*", "ä", "a\n", "x" * 201])
def test_a_bus_name_is_the_first_part_of_a_channel(name: str) -> None:
    with pytest.raises(ChannelError):
        EventBus(Note, name=name, bus=MemoryBus())


async def test_from_a_url_it_opens_and_closes_the_adapter() -> None:
    async with EventBus(Note, name="n", url="memory://") as bus:
        adapter = bus._attach().bus
        async with bus.listen("a") as listener:
            assert await bus.publish(Note(text="x"), "a")
            assert await soon(listener) == Note(text="x")
    with pytest.raises(ClosedError):
        await adapter.publish("n/a", b"")


async def test_a_given_adapter_stays_open() -> None:
    adapter = MemoryBus()
    async with note_bus(adapter) as bus:
        await bus.publish(Note(text="x"), "a")
    assert await adapter.publish("n/a", b"") == 0
    async with EventBus(Note, name="n", backend=Backend(adapter)) as bus:
        await bus.publish(Note(text="x"), "a")
    assert await adapter.publish("n/a", b"") == 0


async def test_a_closed_bus_says_so() -> None:
    bus = note_bus()
    await bus.close()
    published = await bus.publish(Note(text="x"), "a")
    assert isinstance(published.error, ClosedError)
    with pytest.raises(ClosedError):
        await bus.listen("a").ready()
    with pytest.raises(ClosedError):
        await bus.wait_for("a", 1)
    assert not bus.publish_soon(Note(text="x"), "a")


def test_it_goes_on_in_the_next_event_loop() -> None:
    bus = EventBus(Note, name="n", url="memory://")

    async def once() -> Note:
        async with bus.listen("a") as listener:
            assert await bus.publish(Note(text="x"), "a")
            event = await soon(listener)
            assert isinstance(event, Note)
            return event

    assert [asyncio.run(once()).text for _ in range(3)] == ["x"] * 3
    asyncio.run(bus.close())


async def test_two_loops_at_once_are_refused() -> None:
    bus = note_bus()
    await bus.publish(Note(text="x"), "a")
    published = await asyncio.to_thread(lambda: asyncio.run(bus.publish(Note(text="x"), "a")))
    assert isinstance(published.error, ConfigError)
    await bus.close()


async def test_memory_is_not_durable() -> None:
    bus = EventBus(Note, name="n", url="memory://", durable=True)
    published = await bus.publish(Note(text="x"), "a")
    assert isinstance(published.error, ConfigError)
    await bus.close()


# ---- the wire ----


async def test_the_message_is_the_seeds_with_a_trace_beside_it() -> None:
    adapter = MemoryBus()
    async with note_bus(adapter) as bus, await adapter.subscribe("notes/*") as wire:
        token = TRACEPARENT.set("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
        await bus.publish(Note(text="ä"), "u1/g 2")
        TRACEPARENT.reset(token)
        message = await soon(aiter(wire))
        assert message.channel == "notes/u1/g%202"
        assert (
            message.data
            == (
                '{"payload":{"event_type":"note","text":"ä"},'
                '"traceparent":"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}'
            ).encode()
        )


async def test_levels_may_be_given_apart() -> None:
    async with note_bus() as bus, bus.listen(("u/1", "*")) as listener:
        assert await bus.publish(Note(text="x"), ("u/1", "g"))
        assert not await bus.publish(Note(text="x"), "u/1/g")
        assert await soon(listener) == Note(text="x")
        assert listener.channel == "notes/u%2F1/g"


@given(
    st.lists(
        st.text(st.characters(exclude_characters="*", exclude_categories=("Cs", "Cc")), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_any_ids_make_a_key(levels: list[str]) -> None:
    async def run() -> None:
        async with note_bus() as bus, bus.listen(tuple(levels)) as listener, bus.listen("*") as every:
            assert (await bus.publish(Note(text="x"), tuple(levels))).receivers == 2
            assert await soon(listener) == await soon(every)

    asyncio.run(run())


async def test_an_error_can_be_raised() -> None:
    wrong: Any = EXECUTION_EVENTS
    async with note_bus(on_error="raise") as bus:
        with pytest.raises(ChannelError):
            await bus.publish(Note(text="x"), "a*")
        with pytest.raises(CodecError):
            await bus.publish(wrong, "a")
        assert (await bus.publish(Note(text="x"), "a")).receivers == 0


async def test_failures_are_counted_and_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    async with note_bus() as bus:
        for _ in range(100):
            await bus.publish(Note(text="x"), "a*")
        assert bus.stats.failed == 100
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 3  # the 1st, 10th and 100th


# ---- listening ----


async def test_what_cannot_be_read_is_skipped_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    adapter = MemoryBus()
    async with note_bus(adapter) as bus, bus.listen("a") as listener:
        for bad in (b"", b"\xff", b"{}", b'{"payload":[]}', b'{"payload":{"event_type":"other"}}', b'{"payload":{'):
            await adapter.publish("notes/a", bad)
        await bus.publish(Note(text="x"), "a")
        assert await soon(listener) == Note(text="x")
        assert listener.skipped == 6
        assert len(caplog.records) == 2  # no envelope, no event of this model


async def test_a_codec_that_breaks_does_not_end_the_listener() -> None:
    class Breaking(JsonCodec[Note]):
        def decode(self, payload: bytes, channel: str) -> Note:
            if b"bad" in payload:
                raise RecursionError
            return super().decode(payload, channel)

    async with note_bus(codec=Breaking(Note)) as bus, bus.listen("a") as listener:
        await bus.publish(Note(text="bad"), "a")
        await bus.publish(Note(text="good"), "a")
        assert await soon(listener) == Note(text="good")
        assert listener.skipped == 1


async def test_what_cannot_be_decrypted_is_raised_and_the_listener_goes_on() -> None:
    class Secret:
        def encode(self, event: Note, channel: str) -> Encoded:
            return Encoded(json.dumps({"enc": event.text}).encode(), "note")

        def decode(self, payload: bytes, channel: str) -> Note:
            text = json.loads(payload)["enc"]
            if text == "foreign":
                raise DecryptionError
            return Note(text=text)

    async with note_bus(codec=Secret()) as bus, bus.listen("a") as listener:
        for text in ("one", "foreign", "two"):
            await bus.publish(Note(text=text), "a")
        assert await soon(listener) == Note(text="one")
        with pytest.raises(DecryptionError):
            await soon(listener)
        assert await soon(listener) == Note(text="two")


async def test_messages_of_other_publishers_are_read() -> None:
    adapter = MemoryBus()
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    async with note_bus(adapter) as bus, bus.listen("a") as listener:
        for beside in (
            b"",
            b',"x":{}',
            b',"headers":{},"traceparent":"%b"' % trace.encode(),
            b',"offset":3,"epoch":"e"',
        ):
            await adapter.publish("notes/a", b'{"payload":{"event_type":"note","text":"x"}%b}' % beside)
            assert await soon(listener) == Note(text="x")
        assert str(listener.position) == "e-3"
        await adapter.publish("notes/a", b'{ "other": {}, "payload": {"text": "y"} }')
        assert await soon(listener) == Note(text="y")
        assert listener.position is None


async def test_gaps_are_counted_and_told() -> None:
    gaps: list[str] = []
    adapter = MemoryBus(max_messages=10)
    async with note_bus(adapter, on_gap=gaps.append) as bus, bus.listen("a") as listener:
        for number in range(30):
            await bus.publish(Note(text=str(number)), "a")
        assert await soon(listener) == Note(text="20")
        assert (listener.gaps, gaps) == (1, ["notes/a"])


async def test_types_can_be_left_out() -> None:
    bus = EventBus(EXECUTION_EVENTS, name="e", bus=MemoryBus())
    output = NodeOutputEvent(
        user_id="u", graph_id="g", graph_exec_id="x", node_id="n", node_exec_id="ne", index=0, name="o", value=1
    )
    async with bus, bus.listen("a", skip_types=["node_output_update"]) as some, bus.listen("a") as every:
        await bus.publish(output, "a")
        assert await soon(every) == output
        waiting = asyncio.ensure_future(anext(some))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await some.close()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_a_listener_has_a_state() -> None:
    async with note_bus() as bus:
        listener = bus.listen("a")
        assert listener.state == "new"
        assert (await bus.publish(Note(text="x"), "a")).receivers == 0
        assert await listener.ready() is listener
        assert listener.state == "listening"
        assert (await bus.publish(Note(text="x"), "a")).receivers == 1
        await listener.close()
        assert listener.state == "closed"
        with pytest.raises(StopAsyncIteration):
            await anext(listener)


async def test_a_listener_is_an_asynchronous_generator() -> None:
    async with note_bus() as bus:
        listener = bus.listen("a")
        await listener.ready()
        await bus.publish(Note(text="x"), "a")
        assert await listener.asend(None) == Note(text="x")
        with pytest.raises(ValueError, match="mine"):
            await listener.athrow(ValueError("mine"))
        assert listener.state == "closed"
        await listener.aclose()


async def test_a_forgotten_listener_is_closed() -> None:
    async with note_bus() as bus:

        async def first() -> Any:
            task = asyncio.ensure_future(bus.wait_for("a", 5))
            await asyncio.sleep(0)
            await bus.publish(Note(text="x"), "a")
            await task
            async for event in bus.listen("a"):
                return event

        task = asyncio.ensure_future(first())
        await asyncio.sleep(0.01)
        await bus.publish(Note(text="y"), "a")
        assert await task == Note(text="y")
        del task
        gc.collect()
        await asyncio.sleep(0.01)
        assert (await bus.publish(Note(text="x"), "a")).receivers == 0


async def test_a_wait_that_is_given_up_loses_nothing() -> None:
    async with note_bus() as bus, bus.listen("a") as listener:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(listener), 0.01)
        await bus.publish(Note(text="x"), "a")
        assert await soon(listener) == Note(text="x")


class Away(MemoryBus):
    """Cannot be reached while `away`; then `slow` holds a subscription up until it is set."""

    def __init__(self, tries: int = 10**9) -> None:
        super().__init__()
        self.tries_left = tries
        self.slow: asyncio.Event | None = None

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if self.tries_left > 0:
            self.tries_left -= 1
            await asyncio.sleep(0.01)
            raise BusUnavailableError
        if self.slow is not None:
            while not self.slow.is_set():
                with suppress(asyncio.CancelledError):  # as late as can be
                    await self.slow.wait()
        return await super().subscribe(*patterns, sink=sink)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("durable", [False, True])
async def test_the_timeout_of_a_wait_covers_the_opening(durable: bool) -> None:
    adapter, log = Away(), FakeLog()
    backend = Backend(adapter, log, LogRecorder(log, adapter))
    async with EventBus(Note, name="notes", backend=backend, durable=durable) as bus, asyncio.timeout(5):
        assert await bus.wait_for("a", 0.1) is None
        assert adapter.tries_left < 10**9
        if not durable:
            with pytest.raises(BusUnavailableError):
                await bus.wait_for("a")
            with pytest.raises(BusUnavailableError):
                await bus.listen("a").ready()


async def test_a_loop_over_events_waits_for_the_server_as_long_as_it_takes() -> None:
    gaps: list[str] = []
    adapter = Away(tries=50)
    async with note_bus(adapter, on_gap=gaps.append, sleep=no_sleep) as bus:
        listener = bus.listen("a")
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0.02)
        assert listener.state == "connecting"
        with pytest.raises(BusUnavailableError):
            await listener.ready()
        while listener.state != "listening":
            await asyncio.sleep(0.01)
        await bus.publish(Note(text="x"), "a")
        assert await waiting == Note(text="x")
        assert gaps == ["notes/a"], "what was published meanwhile is lost"


async def test_a_listener_that_tries_for_ever_can_be_closed() -> None:
    adapter = Away()
    async with note_bus(adapter) as bus, asyncio.timeout(5):
        listener = bus.listen("a")
        waiting = asyncio.ensure_future(anext(listener))
        while adapter.tries_left > 10**9 - 3:
            await asyncio.sleep(0.01)
        await listener.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert listener.state == "closed"


async def test_a_listener_closed_while_it_opens_stays_closed() -> None:
    adapter = Away(tries=0)
    adapter.slow = asyncio.Event()
    async with note_bus(adapter) as bus, asyncio.timeout(5):
        listener = bus.listen("a")
        opening = asyncio.ensure_future(listener.ready())
        await asyncio.sleep(0.01)
        await listener.close()
        await asyncio.sleep(0.01)
        adapter.slow.set()
        await opening
        assert listener.state == "closed"
        assert await adapter.publish("notes/a", b"{}") == 0
        with pytest.raises(StopAsyncIteration):
            await anext(listener)


async def test_a_position_needs_a_durable_bus() -> None:
    async with note_bus() as bus:
        with pytest.raises(ConfigError):
            bus.listen("a", after="earliest")


@pytest.mark.parametrize("key", ["", "a//b", "a\nb", "x" * 3000, ()])
async def test_an_unusable_key_is_refused(key: Any) -> None:
    async with note_bus() as bus:
        with pytest.raises(ChannelError):
            bus.listen(key)


def test_unions_need_no_adapter_of_their_own() -> None:
    bus: EventBus[Any] = EventBus(Note | NodeOutputEvent, name="n", bus=MemoryBus())
    assert isinstance(bus, EventBus)
    typed: EventBus[Note | NodeOutputEvent] = EventBus(
        TypeAdapter[Note | NodeOutputEvent](Note | NodeOutputEvent), name="n", bus=MemoryBus()
    )
    assert typed.name == "n"
