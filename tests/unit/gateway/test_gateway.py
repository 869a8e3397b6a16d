"""What a subscription delivers: live, from a position, and to whom. The whole gateway without a network."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from livetape.events.channel import execution_channel, execution_tape
from livetape.events.codec import Envelope
from unit.gateway.rig import EXECUTION_CHANNEL, FIVE, NODE, Rig, epoch_of, offsets, rigged

# ---- live -----------------------------------------------------------------------------------------------------------


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
    events = [body for body in bodies if body["method"] == "graph_execution_event"]
    assert [(body["offset"], body["data"]["id"]) for body in events] == [(1, "F"), (2, "E"), (3, "F")]
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


# ---- since ----------------------------------------------------------------------------------------------------------


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


async def test_a_long_replay_joins_live_while_eventsgo_on(rig: Rig) -> None:
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


# ---- permission -----------------------------------------------------------------------------------------------------


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


# ---- jobs -----------------------------------------------------------------------------------------------------------


async def test_a_job(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    client = rig.connect()
    answer = await client.ask({"method": "subscribe_job", "data": {"job_id": "J", "since": "earliest"}})
    assert answer["channel"] == "U|job#J"
    await rig.publisher.job("task_progress")
    await rig.publisher.job("task_completed")
    bodies = await client.take(4)
    events = [body for body in bodies if body["method"] == "job_event"]
    assert offsets(events) == [1, 2, 3]
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
