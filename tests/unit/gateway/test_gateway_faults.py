"""What failures of bus, log and clients do to the watchers. The whole gateway without a network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError, LogUnavailableError
from livetape.events.bus import BusMessage, Sink, Subscription
from livetape.events.channel import execution_channel, execution_tape, job_tape
from livetape.events.codec import Envelope, too_large_payload
from livetape.events.log import Entry, Tape
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import EXECUTION_CHANNEL, NODE, Client, Rig, epoch_of, go_on, offsets, rigged

# ---- the bus fails --------------------------------------------------------------------------------------------------


async def test_a_message_lost_on_the_bus_is_read_from_the_log(rig: Rig) -> None:
    plain, each = rig.connect(), rig.connect()
    await plain.subscribe()
    await each.subscribe(outputs="each")
    await rig.publisher.node(1)
    await rig.publisher.output(2, live=False)
    await rig.publisher.output(3, live=False)
    await rig.publisher.node(4)
    await rig.publisher.graph("COMPLETED")
    assert offsets(await each.take(5)) == [1, 2, 3, 4, 5]
    assert offsets(await plain.take(3)) == [1, 4, 5]


class NarrowBus(MemoryBus):
    """Of what comes together only the last ones arrive, behind a marker."""

    width = 3

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        assert sink is not None

        def narrow(messages: Sequence[BusMessage]) -> None:
            if len(messages) > self.width:
                channels = {message.channel for message in messages}
                marker = BusMessage(channels.pop() if len(channels) == 1 else "", b"", gap=True)
                messages = [marker, *messages[-self.width :]]
            sink(messages)

        return await super().subscribe(*patterns, sink=narrow)


async def test_a_gap_marker_of_the_bus_has_the_log_read() -> None:
    async with rigged(bus=NarrowBus()) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        await rig.publisher.nodes(50)  # without giving the gateway a turn
        await rig.publisher.nodes(1, live=False)
        assert offsets(await client.take(51)) == list(range(1, 52))
        assert rig.counts.values["gateway_bus_gaps_total"] == 1


async def test_a_gap_marker_tells_those_who_have_no_log() -> None:
    async with rigged(bus=NarrowBus()) as rig:
        client = rig.connect()
        await client.subscribe("plain")
        for number in range(10):
            await rig.publisher.node(number, execution="plain", durable=False)
        bodies = await client.take(4)
        assert [body["method"] for body in bodies] == ["gap", *["node_execution_event"] * 3]
        assert bodies[0]["data"] == {"from": None, "to": None, "epoch": None}


async def test_doubled_and_swapped_messages_change_nothing(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe(outputs="each")
    channel, epoch = execution_channel("U", "G", "E"), await epoch_of(rig)
    messages = []
    for number in range(20):
        await rig.publisher.output(number, live=False)
        (entry,) = await rig.log.read(execution_tape("E"), number)
        messages.append(Envelope(entry.payload, entry.event_type, entry.offset, epoch).encode())
    order = [*range(20), *range(20)]
    random.Random(3).shuffle(order)
    for number in order:
        await rig.bus.publish(channel, messages[number])
    assert offsets(await client.take(20)) == list(range(1, 21))
    await client.expect_silence()


async def test_rubbish_on_the_bus_harms_nobody(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    channel = execution_channel("U", "G", "E")
    for rubbish in (b"", b"\xff", b"[]", b'{"payload":5}', b'{"payload":{}', b'{"payload":{"event_type":7}}'):
        await rig.bus.publish(channel, rubbish)
    for rubbish in (b'{"payload":{"payload":5}}', b'{"payload":{}}', b"\xff"):
        await rig.bus.publish("notification_event/U", rubbish)
    await rig.publisher.node()
    bodies = await client.take(3)
    assert [body["method"] for body in bodies] == ["notification", "notification", "node_execution_event"]
    await client.subscribe("odd")
    await rig.bus.publish(
        execution_channel("U", "G", "odd"),
        b'{"payload":{"event_type":"node_execution_update","x":"\xff"},"offset":1,"epoch":"x"}',
    )
    assert (await client.get())["data"]["x"] == "\N{REPLACEMENT CHARACTER}"


class BreakingBus(MemoryBus):
    """Its link can be broken, as when a server goes away. While it is down nothing arrives, and nothing says so."""

    def __init__(self) -> None:
        super().__init__()
        self.link_class = BreakingSubscription
        self.down = False
        self.links: list[BreakingSubscription] = []

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if self.down:
            raise BusUnavailableError
        link = self.link_class(self, await super().subscribe(*patterns, sink=sink))
        self.links.append(link)
        return link

    async def break_links(self) -> None:
        self.down = True
        for link in self.links:
            link.broken = True
            await link.inner.close()
        self.links.clear()


class BreakingSubscription(Subscription):
    def __init__(self, bus: BreakingBus, inner: Subscription) -> None:
        self.bus = bus
        self.inner = inner
        self.broken = False

    async def add(self, *patterns: str) -> None:
        if self.bus.down or self.broken:
            raise BusUnavailableError
        await self.inner.add(*patterns)

    async def remove(self, *patterns: str) -> None:
        if self.bus.down or self.broken:
            raise BusUnavailableError
        await self.inner.remove(*patterns)

    async def __aiter__(self) -> AsyncIterator[BusMessage]:
        async for message in self.inner:
            yield message
        if self.broken:
            raise BusUnavailableError

    async def close(self) -> None:
        await self.inner.close()


async def test_a_link_that_breaks_is_made_again_and_what_was_missed_is_read() -> None:
    bus = BreakingBus()
    async with rigged(bus=bus) as rig:
        await rig.publisher.create()
        before, during = rig.connect(), rig.connect()
        await before.subscribe()
        await rig.publisher.node()
        assert (await before.get())["offset"] == 1
        for _ in range(3):
            await bus.break_links()
            await rig.publisher.node()
            answer = await during.subscribe(since="latest")
            assert answer["success"] is True
            assert (await during.get())["method"] == "replay_complete"
            position = answer["data"]["offset"]
            await rig.publisher.node()
            bus.down = False
            got = await during.get()
            assert got["offset"] == position + 1
            while (await during.get())["offset"] < await _top(rig):
                pass
        assert offsets(await before.take(await _top(rig) - 1)) == list(range(2, await _top(rig) + 1))
        assert rig.counts.values["gateway_bus_failures_total"] >= 3


async def _top(rig: Rig) -> int:
    tape = await rig.log.describe(execution_tape("E"))
    assert tape is not None
    return tape.offset


async def test_the_last_message_may_be_the_lost_one() -> None:
    bus = BreakingBus()
    async with rigged(bus=bus) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        await bus.break_links()
        await rig.publisher.graph("COMPLETED")
        bus.down = False
        assert (await client.get())["final"] is True


# ---- the log fails --------------------------------------------------------------------------------------------------


class FailingLog(FakeLog):
    """Fails as often as it is told to."""

    failures = 0
    error: type[Exception] = LogUnavailableError

    async def describe(self, tape: str) -> Tape | None:
        self._maybe_fail()
        return await super().describe(tape)

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        self._maybe_fail()
        return await super().read(tape, after, limit=limit, epoch=epoch)

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error


async def test_while_the_log_is_away_a_subscribe_is_asked_to_retry() -> None:
    log = FailingLog()
    async with rigged(log=log) as rig:
        await rig.publisher.create()
        client = rig.connect()
        log.failures = 1
        answer = await client.subscribe()
        assert (answer["method"], answer["code"], answer["retry"]) == ("error", "unavailable", True)
        assert (await client.subscribe())["success"] is True
        assert rig.gateway.topics == 1


async def test_a_replay_waits_for_the_log() -> None:
    log = FailingLog()
    async with rigged(log=log) as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(100)
        client = rig.connect()
        await client.subscribe(since="earliest")
        log.failures = 3
        await rig.publisher.node(live=False)
        await rig.publisher.node()
        bodies = [body for body in await client.take(103) if body["method"] != "replay_complete"]
        assert offsets(bodies) == list(range(1, 103))


async def test_an_unexpected_failure_has_a_correlation_id(caplog: pytest.LogCaptureFixture) -> None:
    log = FailingLog()
    async with rigged(log=log) as rig:
        client = rig.connect()
        log.failures, log.error = 1, ZeroDivisionError
        answer = await client.ask({"method": "subscribe_job", "id": 5, "data": {"job_id": "J"}})
        assert (answer["method"], answer["code"], answer["id"]) == ("error", "internal", 5)
        assert answer["correlation_id"] in {getattr(record, "correlation_id", "") for record in caplog.records}
        await client.expect_silence()


async def test_a_replay_that_cannot_go_on_closes_the_socket(caplog: pytest.LogCaptureFixture) -> None:
    log = FailingLog()
    async with rigged(log=log, outbox_max_messages=20) as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(500)
        client = rig.connect()
        client.reading.clear()
        client.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": "earliest"}})
        log.error = ZeroDivisionError
        while log.reads < 1:
            await asyncio.sleep(0)
        log.failures = 1
        client.reading.set()
        assert await client.until_closed() == 1011


async def test_a_tape_that_is_born_again_is_told(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    client = rig.connect()
    await client.ask({"method": "subscribe_job", "data": {"job_id": "J"}})
    rig.log.lose(job_tape("J"))
    await rig.publisher.job("one", live=False)
    await rig.publisher.job("two")
    bodies = await client.take(3)
    assert offsets(bodies) == ["gap", 1, 2]
    epoch = await epoch_of(rig, job_tape("J"))
    assert bodies[0]["data"] == {"from": 2, "to": None, "epoch": epoch}
    assert bodies[1]["epoch"] == epoch


async def test_trimmed_under_a_watcher_is_told(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.publisher.nodes(5, live=False)
    await rig.log.trim(execution_tape("E"), keep_after=3)
    await rig.publisher.node()
    bodies = await client.take(4)
    assert offsets(bodies) == ["gap", 4, 5, 6]
    assert bodies[0]["data"]["from"] == 1
    assert bodies[0]["data"]["to"] == 3


async def test_a_hole_in_the_log_itself_is_told_to_the_slow_too() -> None:
    async with rigged(outbox_max_messages=6) as rig:
        await rig.publisher.create()
        fast, slow = rig.connect(), rig.connect()
        for client in (fast, slow):
            await client.subscribe()
        slow.reading.clear()
        await rig.publisher.nodes(3)
        assert offsets(await fast.take(3)) == [1, 2, 3]
        channel, epoch = execution_channel("U", "G", "E"), await epoch_of(rig)
        time = asyncio.create_task(go_on(rig))
        for offset in (6, 7, 8, 9):
            envelope = Envelope(NODE, "node_execution_update", offset, epoch)
            await rig.bus.publish(channel, envelope.encode())
        assert offsets(await fast.take(5)) == ["gap", 6, 7, 8, 9]
        slow.reading.set()
        bodies = await slow.take(5)
        assert offsets(bodies)[:4] == [1, 2, 3, "gap"]
        await rig.bus.publish(channel, Envelope(NODE, "node_execution_update", 10, epoch).encode())
        while bodies[-1].get("offset", bodies[-1]["data"].get("to")) != 10:
            bodies.append(await slow.get())
        lost = [range(body["data"]["from"], body["data"]["to"] + 1) for body in bodies if body["method"] == "gap"]
        seen = [body["offset"] for body in bodies if "offset" in body]
        assert sorted([*seen, *(number for numbers in lost for number in numbers)]) == list(range(1, 11))
        assert seen == sorted(seen), "each has come in its order, or its loss was told"
        time.cancel()


async def test_a_slow_client_without_a_log_is_told_what_it_missed() -> None:
    async with rigged(outbox_max_messages=4) as rig:
        slow = rig.connect()
        await slow.subscribe("elsewhere")
        slow.reading.clear()
        channel = execution_channel("U", "G", "elsewhere")
        for offset in range(1, 10):
            await rig.bus.publish(channel, Envelope(NODE, "node_execution_update", offset, "x").encode())
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        slow.reading.set()
        bodies = []
        while not bodies or bodies[-1]["method"] != "gap":
            bodies.append(await slow.get())
        assert bodies[-1]["data"] == {"from": len(bodies), "to": 9, "epoch": "x"}
        await rig.bus.publish(channel, Envelope(NODE, "node_execution_update", 10, "x").encode())
        assert (await slow.get())["offset"] == 10


async def test_an_event_too_large_for_the_bus_comes_from_the_log(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.publisher.node(1, live=False)
    stand_in = Envelope(too_large_payload(9, 8), "error_comms_update", 1, await epoch_of(rig))
    await rig.bus.publish(execution_channel("U", "G", "E"), stand_in.encode())
    body = await client.get()
    assert (body["method"], body["offset"], body["data"]["node_id"]) == ("node_execution_event", 1, "N1")


@pytest.mark.parametrize("since", [None, "earliest"])
async def test_an_event_that_is_too_large_for_a_socket_is_cut(since: str | None) -> None:
    async with rigged(max_event_bytes=1_000) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        payload = {"event_type": "node_execution_update", "output_data": {"out": ["x" * 5_000]}, "node_id": "N"}
        await rig.publisher.node(1)
        await rig.publisher._publish("E", payload)
        await rig.publisher.node(3)
        if since is not None:
            client = rig.connect()
            await client.subscribe(since=since)
        bodies = await client.take(3)
        assert offsets(bodies) == [1, 2, 3]
        assert [body.get("truncated") for body in bodies] == [None, True, None]
        (text,) = bodies[1]["data"]["output_data"]["out"]
        assert "omitted" in text
        assert len(text) < 1_000


async def test_an_event_that_is_too_large_is_not_taken_for_another_when_the_log_is_looked_at() -> None:
    async with rigged(max_event_bytes=1_000) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        payload = {"event_type": "node_execution_update", "output_data": {"out": ["x" * 5_000]}}
        await rig.publisher._publish("E", payload)
        assert (await client.get())["truncated"] is True
        (topic,) = rig.gateway._hub.topics()
        await rig.gateway._streams._sweep.look_at([topic])
        await rig.gateway._streams._sweep.look_at([topic])
        await rig.publisher._publish("E", payload, live=False)  # heard of by the next
        await rig.publisher.node(3)
        assert offsets(await client.take(2)) == [2, 3]


async def test_an_event_that_is_too_large_altogether_is_told() -> None:
    async with rigged(max_event_bytes=100) as rig:
        await rig.publisher.create()
        live, late = rig.connect(), rig.connect()
        await live.subscribe()
        await rig.publisher.node(10**100)
        await rig.publisher.node(2)
        told = [await live.take(2)]
        await late.subscribe(since="earliest")
        for bodies in (*told, await late.take(2)):
            assert offsets(bodies) == [1, 2]
            assert (bodies[0]["method"], bodies[0]["code"]) == ("error", "payload_too_large")


async def test_a_stand_in_without_a_place_is_told(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.bus.publish(execution_channel("U", "G", "E"), Envelope(too_large_payload(9, 8), "x").encode())
    body = await client.get()
    assert (body["method"], body["code"], body["channel"]) == ("error", "payload_too_large", EXECUTION_CHANNEL)
    assert "offset" not in body


# ---- at an unlucky moment -------------------------------------------------------------------------------------------


class GatedLog(FakeLog):
    """While it is `shut`, answers are taken at once and handed over one by one, when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.shut = False
        self.held: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def describe(self, tape: str) -> Tape | None:
        return await self._through(await super().describe(tape))

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        return await self._through(await super().read(tape, after, limit=limit, epoch=epoch))

    async def _through(self, answer: Any) -> Any:
        if self.shut:
            held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.put_nowait(held)
            await held
        return answer


async def test_messages_lost_while_a_subscription_is_opened() -> None:
    log, bus = GatedLog(), BreakingBus()
    async with rigged(log=log, bus=bus) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.expect_silence()
        log.shut = True
        client.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": "latest"}})
        (await log.held.get()).set_result(None)
        position = await log.held.get()  # now it is known, and not yet told
        log.shut = False
        await bus.break_links()
        bus.down = False
        await rig.publisher.node(live=False)
        while not bus.links:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        position.set_result(None)
        assert [body["method"] for body in await client.take(2)] == ["subscribe_graph_execution", "replay_complete"]
        assert (await client.get())["offset"] == 1


async def test_messages_lost_while_the_log_is_read() -> None:
    log, bus = GatedLog(), BreakingBus()
    async with rigged(log=log, bus=bus) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        await rig.publisher.node(live=False)
        log.shut = True
        await rig.publisher.node()
        (await log.held.get()).set_result(None)
        entries = await log.held.get()  # 1 and 2
        log.shut = False
        await bus.break_links()
        await rig.publisher.node(live=False)
        bus.down = False
        while not bus.links:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        entries.set_result(None)
        assert offsets(await client.take(3)) == [1, 2, 3]


class SlowBus(BreakingBus):
    """Takes its time to listen."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        link = await super().subscribe(*patterns, sink=sink)
        self.waiting.set()
        await self.gate.wait()
        return link

    async def pause(self) -> None:
        self.waiting.set()
        await self.gate.wait()


class SlowSubscription(BreakingSubscription):
    async def add(self, *patterns: str) -> None:
        if patterns:
            assert isinstance(self.bus, SlowBus)
            await self.bus.pause()
        await super().add(*patterns)


async def test_who_comes_while_the_link_is_made_is_listened_for() -> None:
    bus = SlowBus()
    async with rigged(bus=bus) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.expect_silence()
        bus.gate.clear()
        await bus.break_links()
        bus.down = False
        bus.waiting.clear()
        await bus.waiting.wait()
        await client.subscribe()
        bus.gate.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert await rig.bus.publish(execution_channel("U", "G", "E"), b"{}") == 1
        await rig.publisher.node()
        assert (await client.get())["offset"] == 1


async def test_what_is_written_before_the_bus_listens_is_in_the_position() -> None:
    bus = SlowBus()
    bus.link_class = SlowSubscription
    async with rigged(bus=bus) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.expect_silence()
        bus.gate.clear()
        bus.waiting.clear()
        client.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": "latest"}})
        await bus.waiting.wait()
        await rig.publisher.node()
        bus.gate.set()
        assert (await client.get())["data"]["offset"] == 1
        assert (await client.get())["offset"] == 1
        await client.expect_silence()


class BusyLog(FakeLog):
    """While it is read, more is written and published: whoever only ever reads never arrives."""

    publisher: Any = None
    left = 300

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        answer = await super().read(tape, after, limit=limit, epoch=epoch)
        if self.publisher is not None and self.left:
            self.left -= 1
            await self.publisher.nodes(2)
            for _ in range(5):
                await asyncio.sleep(0)
        return answer


async def test_a_replay_arrives_although_the_tape_grows_all_the_time() -> None:
    log = BusyLog()
    async with rigged(log=log) as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(100)
        other, client = rig.connect(), rig.connect()
        await other.subscribe()
        log.publisher = rig.publisher
        await client.subscribe(since="earliest")
        seen = 0
        while (body := await client.get())["method"] != "replay_complete":
            seen += 1
            assert body["offset"] == seen
        assert log.reads < 20
        log.left = 0


# ---- slow clients ---------------------------------------------------------------------------------------------------


async def test_a_slow_client_is_caught_up_from_the_log_and_slows_nobody() -> None:
    async with rigged(outbox_max_messages=20) as rig:
        await rig.publisher.create()
        slow, fast = rig.connect(), rig.connect()
        await slow.subscribe(outputs="each")
        await fast.subscribe(outputs="each")
        slow.reading.clear()
        for number in range(500):
            await rig.publisher.output(number)
            assert (await fast.get())["offset"] == number + 1
        assert rig.counts.values["gateway_resyncs_total,slow"] == 1
        slow.reading.set()
        assert offsets(await slow.take(500)) == list(range(1, 501))
        await rig.publisher.node()
        assert (await slow.get())["offset"] == 501
        await slow.expect_silence()


async def test_a_client_that_stays_behind_is_closed() -> None:
    async with rigged(outbox_max_messages=20, slow_seconds=0.01) as rig:
        await rig.publisher.create()
        slow = rig.connect()
        await slow.subscribe()
        slow.reading.clear()
        for number in range(100):  # each by itself: what comes together is one push
            await rig.publisher.node(number)
            await asyncio.sleep(0.001)
        await asyncio.wait({slow.task} if slow.task else set(), timeout=5)
        assert slow.task is not None
        assert slow.task.done()
        assert rig.counts.values["gateway_closed_total,4008"] == 1
        assert slow.closed is None, "it did not even take the close"


async def test_a_client_that_reads_again_sees_the_code_and_the_reason() -> None:
    async with rigged(outbox_max_messages=20, slow_seconds=0.01, close_seconds=5) as rig:
        await rig.publisher.create()
        slow = rig.connect()
        await slow.subscribe()
        slow.reading.clear()
        for number in range(100):  # each by itself: what comes together is one push
            await rig.publisher.node(number)
            await asyncio.sleep(0.001)
        while "gateway_resyncs_total,slow" not in rig.counts.values:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, slow.reading.set)
        assert await slow.until_closed() == 4008
        assert slow.closed == (4008, "Too slow")


async def test_who_does_not_take_the_answers_is_not_asked_for_more() -> None:
    async with rigged(outbox_max_messages=10, slow_seconds=0.05, message_burst=100_000) as rig:
        client = rig.connect()
        await client.expect_silence()
        client.reading.clear()
        for _ in range(1000):
            client.say({"method": "heartbeat"})
        await asyncio.wait({client.task} if client.task else set(), timeout=5)
        assert rig.counts.values["gateway_closed_total,4008"] == 1


async def test_a_slow_client_misses_what_is_on_no_tape() -> None:
    async with rigged(outbox_max_messages=2) as rig:
        client = rig.connect()
        await client.subscribe("plain")
        client.reading.clear()
        for number in range(10):
            await rig.publisher.node(number, execution="plain", durable=False)
            await rig.publisher.notify("U", n=number)
        for _ in range(50):
            await asyncio.sleep(0)
        client.reading.set()
        await client.take(2)
        assert rig.counts.values["gateway_refused_total"] >= 10


# ---- everything at once ---------------------------------------------------------------------------------------------


class LossyBus(NarrowBus):
    """Loses, doubles and delays at random, without a word."""

    width = 50

    def __init__(self, randoms: random.Random) -> None:
        super().__init__()
        self.randoms = randoms
        self.held: list[tuple[str, bytes]] = []

    async def publish(self, channel: str, data: bytes) -> int:
        fate = self.randoms.random()
        if fate < 0.1:
            return 0
        if fate < 0.2:
            self.held.append((channel, data))
            return 0
        if fate < 0.3:
            await super().publish(channel, data)
        count = await super().publish(channel, data)
        while self.held and self.randoms.random() < 0.5:
            await super().publish(*self.held.pop())
        return count


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_every_watcher_has_every_event_once_in_order(seed: int) -> None:
    randoms = random.Random(seed)
    bus, log = LossyBus(randoms), FailingLog()
    async with rigged(
        bus=bus, log=log, outbox_max_messages=40, tail_max_events=8, replay_chunk_events=16, max_sockets_per_user=99
    ) as rig:
        names = ["E", "F"]
        for name in names:
            await rig.publisher.create(name)
        watchers: list[tuple[Client, str, int, bool]] = []
        for _ in range(600):
            name = randoms.choice(names)
            kind = randoms.choice([rig.publisher.node, rig.publisher.output, rig.publisher.graph])
            await kind(execution=name)
            if randoms.random() < 0.04:
                tape = await FakeLog.describe(log, execution_tape(name))
                assert tape is not None
                start, each = randoms.randint(0, tape.offset), randoms.random() < 0.5
                client, log.failures = rig.connect(), 0
                data = {"graph_exec_id": name, "since": {"epoch": tape.epoch, "offset": start}}
                client.say(
                    {"method": "subscribe_graph_execution", "data": {**data, **({"outputs": "each"} if each else {})}}
                )
                assert (await client.get())["data"]["recovered"] is True
                watchers.append((client, name, start, each))
            if randoms.random() < 0.1 and watchers:
                client = randoms.choice(watchers)[0]
                client.reading.clear() if client.reading.is_set() else client.reading.set()
            if randoms.random() < 0.1:
                log.failures = randoms.randint(1, 3)
            for _ in range(randoms.randint(0, 3)):
                await asyncio.sleep(0)
        log.failures = 0
        for client, *_ in watchers:
            client.reading.set()
        assert watchers
        time = asyncio.create_task(go_on(rig))
        for name in names:  # whatever was lost last is noticed with the next message
            for channel, data in bus.held:
                await MemoryBus.publish(bus, channel, data)
            position = await rig.publisher.graph("COMPLETED", execution=name, live=False)
            (last,) = await log.read(execution_tape(name), position.offset - 1)
            # The very bytes of the log: any others would mean that the log is not the one it was.
            envelope = Envelope(last.payload, last.event_type, position.offset, position.epoch, final=True)
            await MemoryBus.publish(bus, execution_channel("U", "G", name), envelope.encode())
        for client, name, start, each in watchers:
            entries = await log.read(execution_tape(name), 0)
            wanted = [
                entry.offset
                for entry in entries
                if entry.offset > start and (each or entry.event_type != "node_output_update")
            ]
            got: list[int] = []
            while True:
                body = await client.get()
                assert body["method"] not in {"gap", "error"}
                if body["method"] != "replay_complete":
                    got.append(body["offset"])
                if body.get("final"):
                    break
            assert got == wanted
        time.cancel()
