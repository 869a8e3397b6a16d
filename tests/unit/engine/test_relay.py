"""The relay: in order, each number once, graph events on the graph's tape too, in whatever order it is offered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.memory.bus import MemoryBus
from livetape.engine.outlets import BusOutlet, LiveMessages, Outlet
from livetape.engine.relay import Relay
from livetape.errors import BusUnavailableError
from livetape.events.bus import Subscription
from livetape.events.channel import graph_tape
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Envelope, split
from livetape.events.executions import ExecutionStatus, GraphExecutionEvent, NodeExecutionEvent
from livetape.events.log import NewEvent
from livetape.observability import NoMetrics
from livetape.store.executions import Committed, TapeRelayStore
from livetape.testing.fakes import FakeLog

CHANNEL = "execution_event/u/g/e"
TAPE = "execution_events:e"


def event(number: int, last: int) -> NewEvent:
    kind = "graph_execution_update" if number % 3 == 0 else "node_execution_update"
    return NewEvent(kind, b'{"event_type":"%s","n":%d}' % (kind.encode(), number), final=number == last)


class Marks(TapeRelayStore):
    def __init__(self, found: Sequence[Committed] = ()) -> None:
        self.found = list(found)
        self.marked: dict[str, int] = {}

    async def unpublished(self, *, limit: int = 1000) -> Sequence[Committed]:
        return [c for c in self.found if self.marked.get(c.tape, 0) < c.first]

    async def published(self, tape: str) -> int:
        return self.marked.get(tape, 0)

    async def mark_published(self, upto: dict[str, int]) -> None:
        self.marked |= upto


class Stage:
    def __init__(self, last: int, marks: Marks | None = None) -> None:
        self.last = last
        self.bus = MemoryBus()
        self.log = FakeLog()
        self.marks = marks or Marks()
        self.relay = self.make_relay()

    def make_relay(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> Relay:
        outlet = BusOutlet(self.bus, LiveMessages(self.log, max_message_bytes))
        return Relay(outlet, log=self.log, store=self.marks, metrics=NoMetrics())

    async def write(self) -> None:
        """The tape as the store leaves it."""
        for number in range(1, self.last + 1):
            await self.log.append(TAPE, event(number, self.last))

    def committed(self, first: int, count: int) -> Committed:
        events = [event(number, self.last) for number in range(first, first + count)]
        return Committed(TAPE, CHANNEL, "epoch", "g", "e", first, events)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Subscription]:
        await self.write()
        async with await self.bus.subscribe(CHANNEL) as heard:
            task = asyncio.create_task(self.relay.run())
            try:
                yield heard
            finally:
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled(), task.exception()


async def take(heard: Subscription, count: int) -> list[Envelope]:
    got: list[Envelope] = []
    async with asyncio.timeout(5):
        async for message in heard:
            got.append(split(message.data))
            if len(got) == count:
                break
    return got


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    shuffle=st.randoms(use_true_random=False),
    pauses=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_any_order_of_offers_is_published_in_order_each_once(
    sizes: list[int], shuffle: object, pauses: list[bool]
) -> None:
    async def case() -> None:
        last = sum(sizes)
        stage = Stage(last)
        firsts = [sum(sizes[:i]) + 1 for i in range(len(sizes))]
        offers = [stage.committed(first, size) for first, size in zip(firsts, sizes, strict=True)]
        order = list(offers)
        shuffle.shuffle(order)  # type: ignore[attr-defined]
        async with stage.running() as heard:
            await stage.relay.ready.wait()
            for offer, pause in zip(order, pauses, strict=False):
                stage.relay.offer(offer)
                if pause:
                    await asyncio.sleep(0)
            got = await take(heard, last)
            assert [envelope.offset for envelope in got] == list(range(1, last + 1))
            assert [envelope.payload for envelope in got] == [event(n, last).payload for n in range(1, last + 1)]
            assert [envelope.final for envelope in got] == [False] * (last - 1) + [True]
            graph = [entry.payload for entry in await stage.log.read("graph_events:g")]
            assert graph == [event(n, last).payload for n in range(1, last + 1) if n % 3 == 0]
            places = [e.graph_offset for e in got if e.event_type == "graph_execution_update"]
            assert places == list(range(1, len(graph) + 1))

    asyncio.run(case())


async def test_what_an_earlier_process_left_is_published_first() -> None:
    found = Committed(TAPE, CHANNEL, "epoch", "g", "e", 3, ())
    stage = Stage(7, Marks([found]))
    async with stage.running() as heard:
        assert [envelope.offset for envelope in await take(heard, 5)] == [3, 4, 5, 6, 7]
        await stage.relay.ready.wait()
        assert stage.marks.marked == {TAPE: 7}
        other = Committed("execution_events:f", "execution_event/u/g/f", "epoch", "g", "f", 1, [event(1, 1)])
        async with await stage.bus.subscribe(other.channel) as next_one:
            stage.relay.offer(other)
            assert len(await take(next_one, 1)) == 1, "and it goes on"


async def test_publishing_goes_on_when_the_bus_is_back() -> None:
    class Flaky(MemoryBus):
        refusals = 2

        async def publish(self, channel: str, data: bytes) -> int:
            if Flaky.refusals:
                Flaky.refusals -= 1
                raise BusUnavailableError
            return await super().publish(channel, data)

    stage = Stage(3)
    stage.bus = Flaky()
    stage.relay = stage.make_relay()
    async with stage.running() as heard:
        await stage.relay.ready.wait()
        stage.relay.offer(stage.committed(1, 3))
        assert [envelope.offset for envelope in await take(heard, 3)] == [1, 2, 3]


async def test_an_event_over_the_limit_is_replaced_and_keeps_its_number() -> None:
    stage = Stage(2)
    stage.relay = stage.make_relay(100)
    big = NewEvent("node_execution_update", b'{"event_type":"node_execution_update","x":"%s"}' % (b"y" * 200))
    async with stage.running() as heard:
        await stage.relay.ready.wait()
        stage.relay.offer(Committed(TAPE, CHANNEL, "epoch", "g", "e", 1, [big, event(2, 2)]))
        first, second = await take(heard, 2)
        assert (first.event_type, first.offset) == ("error_comms_update", 1)
        assert first.payload == (
            b'{"event_type":"error_comms_update","error":"Payload too large for Redis transmission",'
            b'"original_size_bytes":%d,"max_size_bytes":100}' % len(b'{"payload":%b}' % big.payload)
        )
        assert second.offset == 2


def node_event(**data: Any) -> NodeExecutionEvent:
    return NodeExecutionEvent.model_validate(
        {
            "user_id": "u",
            "graph_id": "g",
            "graph_version": 1,
            "graph_exec_id": "e",
            "node_exec_id": "ne",
            "node_id": "n",
            "block_id": "b",
            "status": "COMPLETED",
            "input_data": {},
            "output_data": {},
            "add_time": datetime(2026, 1, 1, tzinfo=UTC),
        }
        | data
    )


async def test_values_of_an_event_over_the_limit_are_shortened_on_the_bus_and_whole_on_the_tape() -> None:
    stage = Stage(1)
    limit = 4000
    stage.relay = stage.make_relay(limit)
    whole = node_event(input_data={"in": ["a"]}, output_data={"result": ["head" + "x" * 10_000 + "tail"]})
    event = NewEvent(whole.event_type, whole.model_dump_json().encode())
    await stage.log.append(TAPE, event)
    async with stage.running() as heard:
        await stage.relay.ready.wait()
        stage.relay.offer(Committed(TAPE, CHANNEL, "epoch", "g", "e", 1, [event]))
        (copy,) = await take(heard, 1)
    assert len(copy.encode()) <= limit
    assert (copy.event_type, copy.offset) == ("node_execution_update", 1)
    cut = NodeExecutionEvent.model_validate_json(copy.payload)
    assert cut.input_data == {"in": ["a"]}
    (value,) = cut.output_data["result"]
    assert value.startswith("headxxx")
    assert value.endswith("xxxtail")
    assert cut.model_copy(update={"output_data": whole.output_data}) == whole
    assert (await stage.log.read(TAPE))[0].payload == event.payload


@pytest.mark.parametrize("room", [-1, 0])
async def test_the_limit_is_that_of_the_whole_message(room: int) -> None:
    """With the positions on both tapes beside the payload."""
    graph = GraphExecutionEvent(
        id="e", user_id="u", graph_id="g", graph_version=1, status=ExecutionStatus.RUNNING, inputs={"text": "x" * 3000}
    )
    event = NewEvent(graph.event_type, graph.model_dump_json().encode())
    stage = Stage(1)
    on_graph = await stage.log.create(graph_tape("g"), owner="u", channel="")
    message = Envelope(event.payload, event.event_type, 1, "epoch", 1, on_graph.epoch).encode()
    limit = len(message) + room
    stage.relay = stage.make_relay(limit)
    async with stage.running() as heard:
        await stage.relay.ready.wait()
        stage.relay.offer(Committed(TAPE, CHANNEL, "epoch", "g", "e", 1, [event]))
        (copy,) = await take(heard, 1)
    assert len(copy.encode()) <= limit
    assert (copy.event_type, copy.offset, copy.graph_offset) == ("graph_execution_update", 1, 1)
    assert (copy.payload == event.payload) is (room == 0)


class SlowOutlet(Outlet):
    """Lets two tapes go at once, each when it is told; notes what goes."""

    tapes_at_once = 2

    def __init__(self) -> None:
        self.goes = asyncio.Event()
        self.sent: list[tuple[str, int]] = []

    async def send(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> int:
        await self.goes.wait()
        self.sent += [(committed.tape, first + n) for n in range(len(events))]
        await asyncio.sleep(0)
        return len(events)


async def test_a_tape_that_is_offered_while_it_waits_for_its_turn_gets_one_turn() -> None:
    stage, outlet = Stage(9), SlowOutlet()
    stage.relay = Relay(outlet, log=stage.log, store=stage.marks, metrics=NoMetrics())
    async with stage.running():
        await stage.relay.ready.wait()
        for tape in ("a", "b"):  # nobody else gets a turn before these are out
            stage.relay.offer(Committed(tape, CHANNEL, "epoch", "g", tape, 1, [event(1, 9)]))
        await asyncio.sleep(0.01)
        for number in range(1, 5):
            stage.relay.offer(Committed("c", CHANNEL, "epoch", "g", "c", number, [event(number, 9)]))
            await asyncio.sleep(0.01)
        outlet.goes.set()
        async with asyncio.timeout(5):
            while stage.relay.waiting:
                await asyncio.sleep(0.01)
    assert sorted(outlet.sent) == [("a", 1), ("b", 1), *(("c", number) for number in range(1, 5))]
