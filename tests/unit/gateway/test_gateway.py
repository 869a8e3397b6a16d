"""The whole gateway without a network: who is let in, what a subscription delivers, what a failure does to it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError, LogUnavailableError
from livetape.events.bus import BusMessage, Subscription
from livetape.events.channel import execution_channel, execution_tape, job_tape
from livetape.events.codec import Envelope, too_large_payload
from livetape.events.log import Entry, Tape
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import Client, Rig, rigged

FIVE = ["method", "data", "success", "channel", "error"]
EXECUTION_CHANNEL = "U|graph_exec#E"
NODE = b'{"event_type":"node_execution_update"}'


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as made:
        await made.publisher.create()
        yield made


def offsets(bodies: Sequence[dict[str, Any]]) -> list[Any]:
    return [body.get("offset", body["method"]) for body in bodies]


async def epoch_of(rig: Rig, tape: str = execution_tape("E")) -> str:
    found = await rig.log.describe(tape)
    assert found is not None
    return found.epoch


# ---- live ----------------------------------------------------------------------------------------------------------


async def test_a_client_that_knows_only_the_seed_sees_its_events(rig: Rig) -> None:
    client = rig.connect()
    client.say('{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
    assert await client.hear() == (
        '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}'
    )
    await rig.publisher.graph("RUNNING")
    await rig.publisher.node(1)
    await rig.publisher.output(1)
    await rig.publisher.graph("COMPLETED")
    epoch = await epoch_of(rig)
    assert [await client.hear() for _ in range(3)] == [
        '{"method":"graph_execution_event","data":{"event_type":"graph_execution_update","id":"E","status":"RUNNING"},'
        '"success":null,"channel":"U|graph_exec#E","error":null,"offset":1,"epoch":"' + epoch + '"}',
        '{"method":"node_execution_event","data":{"event_type":"node_execution_update","graph_exec_id":"E",'
        '"node_id":"N1"},"success":null,"channel":"U|graph_exec#E","error":null,"offset":2,"epoch":"' + epoch + '"}',
        '{"method":"graph_execution_event","data":{"event_type":"graph_execution_update","id":"E",'
        '"status":"COMPLETED"},"success":null,"channel":"U|graph_exec#E","error":null,"offset":4,"epoch":"'
        + epoch
        + '","final":true}',
    ]


async def test_with_each_the_numbers_rise_by_one(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe(outputs="each")
    for number in range(3):
        await rig.publisher.node(number)
        await rig.publisher.output(number)
    bodies = await client.take(6)
    assert offsets(bodies) == [1, 2, 3, 4, 5, 6]
    assert {body["method"] for body in bodies} == {"node_execution_event", "node_output_event"}


async def test_a_socket_with_both_subscriptions_gets_a_graph_event_once_per_channel(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    answer = await client.ask({"method": "subscribe_graph_executions", "data": {"graph_id": "G"}})
    assert answer["channel"] == "U|graph#G|executions"
    await rig.publisher.node()
    await rig.publisher.graph()
    got = [(body["channel"], body["method"], body["offset"]) for body in await client.take(3)]
    assert sorted(got) == [
        ("U|graph#G|executions", "graph_execution_event", 1),
        (EXECUTION_CHANNEL, "graph_execution_event", 2),
        (EXECUTION_CHANNEL, "node_execution_event", 1),
    ]
    await client.expect_silence()


async def test_all_executions_of_a_graph_are_on_one_numbered_tape(rig: Rig) -> None:
    await rig.publisher.create("F")
    await rig.publisher.graph(execution="F")
    client = rig.connect()
    await client.ask({"method": "subscribe_graph_executions", "data": {"graph_id": "G", "since": "earliest"}})
    await rig.publisher.graph("COMPLETED", execution="E")
    await rig.publisher.graph("COMPLETED", execution="F")
    bodies = await client.take(4)
    assert offsets(bodies) == [1, "replay_complete", 2, 3] or offsets(bodies) == [1, 1, 2, 3]
    events = [body for body in bodies if body["method"] == "graph_execution_event"]
    assert [body["data"]["id"] for body in events] == ["F", "E", "F"]
    assert all("final" not in body for body in events)


async def test_unsubscribed_is_silent(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.publisher.node()
    assert (await client.get())["offset"] == 1
    answer = await client.ask({"method": "unsubscribe", "data": {"graph_exec_id": "E"}})
    assert answer["channel"] == EXECUTION_CHANNEL
    await rig.publisher.node()
    await client.expect_silence()
    assert rig.gateway.topics == 0


async def test_nobody_here_watches_so_nothing_is_listened_to(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    channel = execution_channel("U", "G", "E")
    assert await rig.bus.publish(channel, b'{"payload":{}}') == 1
    await client.hang_up()
    async with asyncio.timeout(5):
        while await rig.bus.publish(channel, b'{"payload":{}}'):
            await asyncio.sleep(0)


async def test_every_socket_of_a_user_gets_notifications(rig: Rig) -> None:
    clients = [rig.connect(), rig.connect(), rig.connect("V")]
    for client in clients:
        await client.expect_silence()
    await rig.publisher.notify("U", type="info", event="hey", step=None)
    for client in clients[:2]:
        assert await client.hear() == (
            '{"method":"notification","data":{"type":"info","event":"hey","step":null},"success":null,"channel":null,'
            '"error":null}'
        )
    await clients[2].expect_silence()


async def test_everything_waiting_leaves_in_one_write(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    client.reading.clear()
    await rig.publisher.nodes(1)
    for _ in range(5):
        await asyncio.sleep(0)
    await rig.publisher.nodes(50)
    for _ in range(5):
        await asyncio.sleep(0)
    before = client.writes
    client.reading.set()
    assert offsets(await client.take(51)) == list(range(1, 52))
    assert client.writes - before == 2


# ---- since ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "count", "recovered"),
    [
        ("earliest", 10, True),
        ("latest", 0, True),
        ({"last": 3}, 3, True),
        ({"last": 0}, 0, True),
        ({"last": 99}, 10, True),
        ({"seconds": 45}, 4, True),
        ({"seconds": 40}, 4, True),
        ({"seconds": 39}, 3, True),
        ({"seconds": 0}, 0, True),
        ({"seconds": 9999}, 10, True),
        ({"epoch": None, "offset": 4}, 6, True),
        ({"epoch": None, "offset": 0}, 10, True),
        ({"epoch": None, "offset": 10}, 0, True),
        ({"epoch": None, "offset": 11}, 0, False),
        ({"epoch": "another", "offset": 4}, 0, False),
    ],
)
async def test_since(rig: Rig, since: Any, count: int, recovered: bool) -> None:
    for _ in range(10):
        rig.clock.advance(10)
        await rig.publisher.node()
    rig.clock.advance(10)
    epoch = await epoch_of(rig)
    if isinstance(since, dict) and "epoch" in since:
        since["epoch"] = since["epoch"] or epoch
    client = rig.connect()
    answer = await client.subscribe(since=since)
    assert answer["data"] == {"epoch": epoch, "offset": 10, "recovered": recovered, "count": count}
    assert list(answer) == FIVE
    bodies = await client.take(count + 1)
    assert offsets(bodies[:-1]) == list(range(11 - count, 11))
    assert list(bodies[-1]) == [*FIVE, "offset", "epoch"]
    assert (bodies[-1]["method"], bodies[-1]["offset"]) == ("replay_complete", 10)
    await rig.publisher.node()
    assert (await client.get())["offset"] == 11


async def test_what_was_trimmed_is_said_and_not_replayed(rig: Rig) -> None:
    await rig.publisher.nodes(10)
    await rig.log.trim(execution_tape("E"), keep_after=6)
    epoch = await epoch_of(rig)
    lost, kept, edge = rig.connect(), rig.connect(), rig.connect()
    answer = await lost.subscribe(since={"epoch": epoch, "offset": 3})
    assert answer["data"] == {"epoch": epoch, "offset": 10, "recovered": False, "count": 0}
    assert (await lost.get())["method"] == "replay_complete"
    answer = await kept.subscribe(since="earliest")
    assert answer["data"]["count"] == 4
    assert offsets(await kept.take(4)) == [7, 8, 9, 10]
    answer = await edge.subscribe(since={"epoch": epoch, "offset": 6})
    assert answer["data"]["recovered"] is True
    await rig.publisher.node()
    assert (await lost.get())["offset"] == 11


async def test_a_tape_that_is_all_trimmed_has_lost_nothing_to_who_has_seen_its_end(rig: Rig) -> None:
    await rig.publisher.nodes(3)
    await rig.log.trim(execution_tape("E"), keep_after=3)
    client = rig.connect()
    answer = await client.subscribe(since={"epoch": await epoch_of(rig), "offset": 3})
    assert answer["data"]["recovered"] is True


async def test_a_long_replay_joins_live_while_events_go_on(rig: Rig) -> None:
    await rig.publisher.nodes(2000)
    client = rig.connect()
    await client.subscribe(since="earliest")
    publishing = asyncio.create_task(rig.publisher.nodes(500))
    bodies = await client.take(2501)
    await publishing
    numbers = [body["offset"] for body in bodies if body["method"] == "node_execution_event"]
    assert numbers == list(range(1, 2501))
    assert sum(body["method"] == "replay_complete" for body in bodies) == 1


async def test_a_client_that_reconnects_with_its_position_misses_nothing(rig: Rig) -> None:
    seen: list[int] = []
    since: Any = "earliest"
    randoms = random.Random(7)
    for _ in range(10):
        client = rig.connect()
        await client.subscribe(since=since, outputs="each")
        while (body := await client.get())["method"] != "replay_complete":
            seen.append(body["offset"])
        for number in range(randoms.randint(1, 5)):
            await rig.publisher.output(number)
        for _ in range(randoms.randint(0, 1)):
            body = await client.get()
            seen.append(body["offset"])
        await client.hang_up()
        await rig.publisher.node()
        since = {"epoch": await epoch_of(rig), "offset": seen[-1]} if seen else "earliest"
    client = rig.connect()
    await client.subscribe(since=since, outputs="each")
    while (body := await client.get())["method"] != "replay_complete":
        seen.append(body["offset"])
    found = await rig.log.describe(execution_tape("E"))
    assert found is not None
    assert seen == list(range(1, found.offset + 1))


async def test_subscribing_anew_with_a_position_replaces_the_subscription(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.publisher.nodes(2)
    assert offsets(await client.take(2)) == [1, 2]
    await client.subscribe(since="earliest")
    assert offsets(await client.take(3)) == [1, 2, 2]
    await rig.publisher.node()
    assert (await client.get())["offset"] == 3
    await client.expect_silence()


async def test_since_in_the_middle_of_everything_is_right_for_everybody(rig: Rig) -> None:
    """Many come at once, with positions all over the tape, while it grows."""
    await rig.publisher.nodes(300)
    epoch = await epoch_of(rig)
    starts = [0, 1, 150, 299, 300]
    clients = [rig.connect() for _ in starts]
    publishing = asyncio.create_task(rig.publisher.nodes(300))
    for client, start in zip(clients, starts, strict=True):
        client.say(
            {
                "method": "subscribe_graph_execution",
                "data": {"graph_exec_id": "E", "since": {"epoch": epoch, "offset": start}},
            }
        )
    await publishing
    for client, start in zip(clients, starts, strict=True):
        bodies = await client.take(2 + 600 - start)
        numbers = [body["offset"] for body in bodies if body["method"] == "node_execution_event"]
        assert numbers == list(range(start + 1, 601))


# ---- permission ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "key", "channel"),
    [
        ("subscribe_graph_execution", "graph_exec_id", "V|graph_exec#{}"),
        ("subscribe_graph_executions", "graph_id", "V|graph#{}|executions"),
        ("subscribe_job", "job_id", "V|job#{}"),
    ],
)
async def test_a_foreign_id_is_answered_like_one_that_nobody_knows(
    rig: Rig, method: str, key: str, channel: str
) -> None:
    await rig.publisher.job("task_started")
    foreign = {"graph_exec_id": "E", "graph_id": "G", "job_id": "J"}[key]
    client = rig.connect("V")
    for since in (None, "earliest", {"last": 5}):
        answers = []
        for name in (foreign, "nobody-knows"):
            client.say({"method": method, "data": {key: name, **({"since": since} if since else {})}})
            text = await client.hear()
            if since:
                text += await client.hear()
            answers.append(text.replace(name, "ID"))
        assert answers[0] == answers[1]
        assert json.loads(answers[0].split("}{")[0] + ("}" if since else ""))["channel"] == channel.format("ID")
    await rig.publisher.graph()
    await rig.publisher.job("task_progress")
    await client.expect_silence()


@pytest.mark.parametrize("name", ["E", "nobody-knows"])
async def test_strict_gives_the_same_error_for_both(rig: Rig, name: str) -> None:
    client = rig.connect("V")
    client.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": name, "strict": True}})
    assert await client.hear() == (
        '{"method":"error","data":null,"success":false,"channel":null,"error":"Not found",'
        '"code":"not_found","retry":false}'
    )
    await client.expect_silence()
    own = rig.connect("U")
    assert (await own.subscribe(strict=True))["success"] is True


async def test_an_id_without_metadata_delivers_the_own_events_once_it_comes(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect("V")
    for one in (client, other):
        answer = await one.subscribe("later", since="earliest")
        assert answer["data"] == {"epoch": None, "offset": 0, "recovered": False, "count": 0}
        assert (await one.get())["method"] == "replay_complete"
    await rig.publisher.create("later")
    await rig.publisher.graph(execution="later")
    await rig.publisher.node(execution="later")
    assert offsets(await client.take(2)) == [1, 2]
    await other.expect_silence()


async def test_its_first_event_may_be_lost_on_the_bus(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe("later")
    await rig.publisher.create("later")
    await rig.publisher.node(execution="later", live=False)
    await rig.publisher.node(execution="later")
    assert offsets(await client.take(2)) == [1, 2]


async def test_a_plain_publisher_of_the_seed_is_pushed_at_once(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect("V")
    for one in (client, other):
        await one.subscribe("plain")
        await one.ask({"method": "subscribe_graph_executions", "data": {"graph_id": "plain-graph"}})
    await rig.publisher.graph(execution="plain", graph="plain-graph", durable=False)
    await rig.publisher.node(execution="plain", graph="plain-graph", durable=False)
    bodies = await client.take(3)
    assert all(list(body) == FIVE for body in bodies)
    assert sorted(body["channel"] for body in bodies) == [
        "U|graph#plain-graph|executions",
        "U|graph_exec#plain",
        "U|graph_exec#plain",
    ]
    await other.expect_silence()


async def test_a_hole_without_a_log_is_told(rig: Rig) -> None:
    """Numbered events of a tape that this gateway cannot read."""
    client = rig.connect()
    await client.subscribe("elsewhere")
    channel = execution_channel("U", "G", "elsewhere")
    for offset in (1, 2, 5, 6):
        envelope = Envelope(NODE, "node_execution_update", offset, "x")
        await rig.bus.publish(channel, envelope.encode())
    bodies = await client.take(5)
    assert offsets(bodies) == [1, 2, "gap", 5, 6]
    assert bodies[2]["data"] == {"from": 3, "to": 4, "epoch": "x"}


# ---- jobs ----------------------------------------------------------------------------------------------------------


async def test_a_job(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    client = rig.connect()
    answer = await client.ask({"method": "subscribe_job", "data": {"job_id": "J", "since": "earliest"}})
    assert answer["channel"] == "U|job#J"
    await rig.publisher.job("task_progress")
    await rig.publisher.job("task_completed")
    bodies = await client.take(4)
    assert sorted(map(str, offsets(bodies))) == ["1", "1", "2", "3"]
    events = [body for body in bodies if body["method"] == "job_event"]
    assert [body["data"]["event_type"] for body in events] == ["task_started", "task_progress", "task_completed"]
    assert [body.get("final") for body in events] == [None, None, True]


async def test_a_job_that_begins_later_belongs_to_who_began_it(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect("V")
    for one in (client, other):
        await one.ask({"method": "subscribe_job", "data": {"job_id": "J"}})
    await rig.publisher.job("task_started")
    await rig.publisher.job("task_progress")
    assert offsets(await client.take(2)) == [1, 2]
    await other.expect_silence()


async def test_a_job_without_owner_is_for_admins(rig: Rig) -> None:
    admin, user = rig.connect("A", role="admin"), rig.connect()
    for one in (admin, user):
        await one.ask({"method": "subscribe_job", "data": {"job_id": "J"}})
    await rig.publisher.job("task_started", user=None)
    await rig.publisher.job("task_progress", user=None)
    assert offsets(await admin.take(2)) == [1, 2]
    await user.expect_silence()


async def test_or_for_everybody_when_set_so() -> None:
    async with rigged(jobs_unowned="any_user") as rig:
        await rig.publisher.job("task_started", user=None)
        client = rig.connect()
        await client.ask({"method": "subscribe_job", "data": {"job_id": "J", "since": "earliest", "strict": True}})
        assert offsets(await client.take(2)) == [1, 1]


async def test_an_event_of_a_job_on_no_tape_shows_nobody_whose_it_is(rig: Rig) -> None:
    client = rig.connect()
    await client.ask({"method": "subscribe_job", "data": {"job_id": "J"}})
    await rig.bus.publish("job_event/J", b'{"payload":{"event_type":"task_started","job_id":"J"}}')
    await client.expect_silence()


# ---- the bus fails -------------------------------------------------------------------------------------------------


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


async def test_a_gap_marker_of_the_bus_has_the_log_read() -> None:
    async with rigged(bus=MemoryBus(max_messages=3)) as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        await rig.publisher.nodes(50)  # without giving the gateway a turn
        await rig.publisher.nodes(1, live=False)
        assert offsets(await client.take(51)) == list(range(1, 52))
        assert rig.counts.values["gateway_bus_gaps_total"] == 1


async def test_a_gap_marker_tells_those_who_have_no_log() -> None:
    async with rigged(bus=MemoryBus(max_messages=3)) as rig:
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
        payload = json.dumps({"event_type": "node_output_update", "graph_exec_id": "E", "index": number}).encode()
        messages.append(Envelope(payload, "node_output_update", number + 1, epoch).encode())
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

    async def subscribe(self, *patterns: str) -> Subscription:
        if self.down:
            raise BusUnavailableError
        link = self.link_class(self, await super().subscribe(*patterns))
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


# ---- the log fails -------------------------------------------------------------------------------------------------


class FailingLog(FakeLog):
    """Fails as often as it is told to."""

    failures = 0
    error: type[Exception] = LogUnavailableError

    async def describe(self, tape: str) -> Tape | None:
        self._maybe_fail()
        return await super().describe(tape)

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000) -> Sequence[Entry]:
        self._maybe_fail()
        return await super().read(tape, after, limit=limit)

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
        time = asyncio.create_task(_go_on(rig))
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


async def test_an_event_that_is_too_large_altogether_is_told() -> None:
    async with rigged(max_event_bytes=100) as rig:
        await rig.publisher.create()
        live, late = rig.connect(), rig.connect()
        await live.subscribe()
        await rig.publisher.node(10**100)
        await rig.publisher.node(2)
        await late.subscribe(since="earliest")
        for client in (live, late):
            bodies = await client.take(2)
            assert offsets(bodies) == [1, 2]
            assert (bodies[0]["method"], bodies[0]["code"]) == ("error", "payload_too_large")


async def test_a_stand_in_without_a_place_is_told(rig: Rig) -> None:
    client = rig.connect()
    await client.subscribe()
    await rig.bus.publish(execution_channel("U", "G", "E"), Envelope(too_large_payload(9, 8), "x").encode())
    body = await client.get()
    assert (body["method"], body["code"], body["channel"]) == ("error", "payload_too_large", EXECUTION_CHANNEL)
    assert "offset" not in body


# ---- at an unlucky moment ------------------------------------------------------------------------------------------


class GatedLog(FakeLog):
    """While it is `shut`, answers are taken at once and handed over one by one, when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.shut = False
        self.held: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def describe(self, tape: str) -> Tape | None:
        return await self._through(await super().describe(tape))

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000) -> Sequence[Entry]:
        return await self._through(await super().read(tape, after, limit=limit))

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

    async def subscribe(self, *patterns: str) -> Subscription:
        link = await super().subscribe(*patterns)
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

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000) -> Sequence[Entry]:
        answer = await super().read(tape, after, limit=limit)
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


# ---- slow clients --------------------------------------------------------------------------------------------------


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
        await rig.publisher.nodes(100)
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
        await rig.publisher.nodes(100)
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


# ---- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [(None, 4001, "Missing authentication token"), ("rubbish", 4003, "Invalid token")],
)
async def test_refused_connections_are_accepted_and_then_closed(
    rig: Rig, token: str | None, code: int, reason: str
) -> None:
    client = rig.connect(token=token)
    assert await client.until_closed() == code
    assert client.closed == (code, reason)
    assert client.accepted


async def test_a_token_without_user_and_one_that_is_over(rig: Rig) -> None:
    assert await rig.connect(user="").until_closed() == 4002
    assert await rig.connect(user="*").until_closed() == 4002
    assert await rig.connect(ttl_s=-60).until_closed() == 4003


async def test_a_refusal_takes_its_time() -> None:
    async with rigged(refuse_delay_min_seconds=1, refuse_delay_max_seconds=5) as rig:
        client = rig.connect(token=None)
        await rig.clock.sleeper()
        rig.clock.advance(0.9)
        assert client.closed is None
        rig.clock.advance(4.1)
        assert await client.until_closed() == 4001


async def test_who_goes_before_it_is_refused_is_let_go() -> None:
    async with rigged(refuse_delay_min_seconds=1, refuse_delay_max_seconds=5) as rig:
        client = rig.connect(token=None)
        await rig.clock.sleeper()
        await client.hang_up()


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("null", 403), ("https://page.example", None), ("http://h", None), (None, None)],
)
async def test_a_foreign_page_is_refused_at_the_handshake(rig: Rig, origin: str | None, status: int | None) -> None:
    client = rig.connect(origin=origin)
    if status is None:
        await client.expect_silence()
    else:
        assert client.task is not None
        await client.task
        assert client.rejected == status
        assert not client.accepted


async def test_so_many_sockets_of_one_user_and_no_more() -> None:
    async with rigged(max_sockets_per_user=2) as rig:
        first = rig.connect()
        for client in (first, rig.connect(), rig.connect("V")):
            await client.expect_silence()
        refused = rig.connect()
        told = await refused.get()
        assert (told["method"], told["code"], told["retry_after"]) == ("error", "too_many_sockets", 30)
        assert await refused.until_closed() == 4029
        await first.hang_up()
        await rig.connect().expect_silence()


async def test_with_auth_off_everybody_is_the_default_user_and_is_not_counted() -> None:
    async with rigged(max_sockets_per_user=1, auth={"enable_auth": False}) as rig:
        for _ in range(3):
            client = rig.connect(token=None)
            answer = await client.subscribe("E")
            assert answer["channel"] == "3e53486c-cf57-477e-ba2a-cb02dc828e1a|graph_exec#E"


async def test_the_development_user_needs_no_token() -> None:
    async with rigged(auth={"dev_user": True}) as rig:
        dev = rig.connect(token=None, host="localhost:8420", peer="127.0.0.1")
        assert (await dev.subscribe("E"))["channel"].startswith("3e53486c")
        assert await rig.connect(token=None, host="evil.example", peer="127.0.0.1").until_closed() == 4001
        assert await rig.connect(token="bad", host="localhost", peer="127.0.0.1").until_closed() == 4003
        page = rig.connect(token=None, host="localhost", peer="127.0.0.1", origin="https://evil.example")
        assert page.task is not None
        await page.task
        assert page.rejected == 403


async def test_one_socket_too_many_for_the_process() -> None:
    async with rigged(max_sockets=1) as rig:
        await rig.connect().expect_silence()
        refused = rig.connect()
        assert refused.task is not None
        await refused.task
        assert refused.rejected == 503


# ---- limits and ends -----------------------------------------------------------------------------------------------


async def test_bad_messages_are_answered_and_the_socket_stays(rig: Rig) -> None:
    client = rig.connect()
    for message in ("not json", b"\xff\x00", {"method": "fly"}, {"method": "notification"}, "[" * 10_000):
        answer = await client.ask(message)
        assert (list(answer), answer["method"], answer["success"]) == (FIVE, "error", False)
    client.say({"method": "error", "error": "a client's trouble"})
    await client.expect_silence()


async def test_a_message_that_is_too_big_closes_only_its_socket(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect()
    await other.expect_silence()
    client.say("x" * 300_000)
    assert await client.until_closed() == 1009
    await other.expect_silence()


async def test_more_channels_than_allowed_is_an_error_until_one_has_finished() -> None:
    async with rigged(max_channels=1) as rig:
        await rig.publisher.create("E")
        await rig.publisher.create("F")
        client = rig.connect()
        await client.subscribe("E")
        assert (await client.subscribe("F"))["code"] == "too_many_channels"
        await rig.publisher.graph("COMPLETED", execution="E")
        assert (await client.get())["final"] is True
        assert (await client.subscribe("F"))["success"] is True


async def test_what_is_finished_already_counts_no_more() -> None:
    async with rigged(max_channels=1) as rig:
        client = rig.connect()
        for name in ("A", "B", "C"):
            await rig.publisher.create(name)
            await rig.publisher.graph("COMPLETED", execution=name)
            assert (await client.subscribe(name, since="earliest"))["success"] is True
            assert offsets(await client.take(2)) == [1, 1]
        assert rig.gateway.topics <= 2


async def test_a_token_that_ends_is_announced_then_closes(rig: Rig) -> None:
    client = rig.connect(ttl_s=3600)
    await client.expect_silence()
    for _ in range(59):
        await rig.clock.sleeper()
        rig.clock.advance(60)
    body = await client.get()
    assert (body["method"], body["data"]) == ("token_expiring", {"expires_at": "2030-01-01T01:00:00Z"})
    await client.expect_silence()
    for _ in range(2):
        await rig.clock.sleeper()
        rig.clock.advance(60)
    assert await client.until_closed() == 4003


async def test_a_fast_talker_is_slowed() -> None:
    async with rigged(message_burst=5, messages_per_second=1, flood_seconds=3) as rig:
        client = rig.connect()
        for _ in range(20):
            client.say({"method": "heartbeat"})
        await client.take(5)
        answered = 5
        while True:
            await rig.clock.sleeper()
            rig.clock.advance(1)
            body = await client.get()
            if body["method"] == "error":
                break
            answered += 1
        assert body["code"] == "rate_limited"
        assert await client.until_closed() == 4029
        assert answered < 12


async def test_a_gateway_that_stops_says_so_to_everybody(rig: Rig) -> None:
    clients = [rig.connect(), rig.connect("V")]
    for client in clients:
        await client.subscribe("E")
    await rig.publisher.node()
    rig.gateway.drain()
    assert [await client.until_closed() for client in clients] == [1012, 1012]
    late = rig.connect()
    assert late.task is not None
    await late.task
    assert late.rejected == 503


async def test_the_gauge_of_connections(rig: Rig) -> None:
    client = rig.connect()
    await client.expect_silence()
    assert rig.counts.values["websocket_connections_total"] == 1
    await client.hang_up()
    assert rig.counts.values["websocket_connections_total"] == 0


async def test_coming_and_going_leaves_nothing_behind(rig: Rig) -> None:
    client = rig.connect()
    for number in range(200):
        await client.subscribe(f"E{number % 7}", since="earliest")
        await client.get()
        await client.ask({"method": "unsubscribe", "data": {"channel": f"U|graph_exec#E{number % 7}"}})
    assert rig.gateway.topics == 0
    await client.hang_up()
    async with asyncio.timeout(5):
        while await rig.bus.publish("notification_event/U", b"{}"):
            await asyncio.sleep(0)


# ---- everything at once --------------------------------------------------------------------------------------------


class LossyBus(MemoryBus):
    """Loses, doubles and delays at random, without a word."""

    def __init__(self, randoms: random.Random) -> None:
        super().__init__(max_messages=50)
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
        time = asyncio.create_task(_go_on(rig))
        for name in names:  # whatever was lost last is noticed with the next message
            for channel, data in bus.held:
                await MemoryBus.publish(bus, channel, data)
            position = await rig.publisher.graph("COMPLETED", execution=name, live=False)
            payload = {"event_type": "graph_execution_update", "id": name, "status": "COMPLETED"}
            envelope = Envelope(
                json.dumps(payload).encode(), "graph_execution_update", position.offset, position.epoch, final=True
            )
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


async def _go_on(rig: Rig) -> None:
    """Time passes for those who wait before they try again."""
    while True:
        await rig.clock.sleeper()
        rig.clock.advance(1)
        await asyncio.sleep(0)
